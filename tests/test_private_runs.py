"""Whole runs under differential privacy: bits without noise, seeds of noise, epsilon in what is left."""

from contextlib import closing

import pyarrow.parquet as pq
import pytest
import torch
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant

import fedray
from fedray import checkpoint
from fedray.comparison.measures import measures_of, trajectory_of
from fedray.engine import play_round
from fedray.errors import ConfigError
from fedray.report.reading import read_run
from report_page import Page
from tiny_run import assert_same_adapter, begun, merged, opened, played

ZERO_PAD = {"name": "factor_mean", "options": {"mode": "zero_pad"}, "weights": "uniform"}
SHORT = {"rounds": {"num_rounds": 2, "clients_per_round": 4}}


def private(tiny, where="central", clip_norm=0.1, noise_multiplier=1.0, **changes):
    section = {"where": where, "clip_norm": clip_norm, "noise_multiplier": noise_multiplier}
    return merged(tiny, {"aggregation": ZERO_PAD, "privacy": section, **SHORT, **changes})


def same_bits(one, other):
    left, right = one.state.adapter.tensors(), other.state.adapter.tensors()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("where", ["central", "local"])
def test_without_noise_and_with_a_norm_that_nobody_reaches_a_run_has_the_bits_of_one_without_privacy(
    tiny, where
):
    plain = played(merged(tiny, {"aggregation": ZERO_PAD, **SHORT}))
    bounded = played(private(tiny, where, 1e9, 0.0))
    assert_same_adapter(plain.state.adapter, bounded.state.adapter)
    assert [record.epsilon for record in bounded.rounds] == [None, None]


@pytest.mark.parametrize("where", ["central", "local"])
def test_noise_does_not_depend_on_packs_and_is_another_with_another_seed(tiny, where):
    # With no step size every update is nothing but noise.
    still = {"training": {"learning_rate": 0.0}}
    packed = played(private(tiny, where, **still))
    alone = played(private(tiny, where, **still, packs={"clients_per_pack": 1}))
    other = played(private(tiny, where, **still, seed=1))
    assert same_bits(packed, alone)
    assert not same_bits(packed, other)


@pytest.mark.ray
def test_neither_noise_nor_masks_depend_on_actors(tiny):
    masks = {"secure_aggregation": {"masks": "pairwise"}}
    local = played(private(tiny, "local", **masks))
    on_ray = played(private(tiny, "local", **masks, runtime="on_ray", ray={"num_actors": 2}))
    assert_same_adapter(local.state.adapter, on_ray.state.adapter)
    assert [record.epsilon for record in local.rounds] == [record.epsilon for record in on_ray.rounds]


def test_epsilon_is_in_the_records_the_report_and_comparisons_and_is_dp_accountings_own(tiny, tmp_path):
    out = fedray.run(private(tiny, selection="poisson"), out=tmp_path / "run").out
    rows = pq.read_table(out / "rounds.parquet").to_pylist()
    theirs = RdpAccountant(list(range(2, 600)), NeighboringRelation.ADD_OR_REMOVE_ONE)
    for row in rows:
        theirs.compose(dp_event.PoissonSampledDpEvent(4 / 8, dp_event.GaussianDpEvent(1.0)))
        assert row["sampling_rate"] == 0.5
        assert row["epsilon"] == pytest.approx(theirs.get_epsilon(1e-5))
    page = Page(fedray.write_report(out).read_text())
    assert "protection" in page.anchors
    assert f"{rows[-1]['epsilon']:.3g}" in page.text
    assert page.row("Round", "Chance to be asked") == ["Round", "Chance to be asked", "Epsilon", "Accuracy"]
    run = read_run(out)
    course = trajectory_of(run)
    budgets = dict(course.totals)
    found = {m.name: m for m in measures_of(run, course, budgets=budgets, target=0.5, clients=range(8))}
    assert found["epsilon"].value == rows[-1]["epsilon"]


def test_a_local_promise_is_that_of_who_sent_most(tiny):
    records = played(private(tiny, "local"))
    sent = [record.client_id for record in records.clients]
    theirs = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    theirs.compose(dp_event.GaussianDpEvent(0.5), max(map(sent.count, sent)))
    assert records.rounds[-1].epsilon == pytest.approx(theirs.get_epsilon(1e-5))
    assert records.rounds[-1].sampling_rate is None


def test_a_round_in_which_nobody_is_drawn_moves_the_model_by_noise_and_is_counted(tiny):
    rounds = {"num_rounds": 4, "clients_per_round": 1}
    progress = played(private(tiny, selection="poisson", seed=5, rounds=rounds))
    empty = [record for record in progress.rounds if not record.num_ok]
    assert empty
    assert progress.state.version == 4
    epsilons = [record.epsilon for record in progress.rounds]
    assert epsilons == sorted(epsilons)
    assert len(set(epsilons)) == 4


def test_a_run_that_goes_on_from_its_checkpoint_has_the_noise_and_the_epsilon_of_one_unbroken(tiny, tmp_path):
    config = private(tiny, selection="poisson")
    whole = played(config)
    scene, parts, runtime = opened(config)
    with closing(runtime):
        play_round(scene, parts, runtime, 1)
        checkpoint.save(tmp_path, parts)
        again = checkpoint.load(tmp_path)
        play_round(scene, again, runtime, 2)
    assert_same_adapter(again.state.adapter, whole.state.adapter)
    assert [record.epsilon for record in again.rounds] == [record.epsilon for record in whole.rounds]


def test_a_rule_of_unknown_sensitivity_is_refused_before_anything_is_read(tiny):
    section = {"where": "central", "clip_norm": 1.0}
    with pytest.raises(ConfigError, match=r"of aggregation 'factor_mean' \(mode dimension.* is not known"):
        begun(merged(tiny, {"privacy": section, "selection": "poisson"}))
