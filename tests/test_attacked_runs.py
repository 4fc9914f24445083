"""Whole runs with attackers, of any assignment, under means and robust rules, with what they leave."""

import pytest
import torch

import fedray
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.simulation.devices import simulated_scene
from report_page import Page
from tiny_run import assert_same_adapter, begun, merged, played, records, save_fleet

SHORT = {"rounds": {"num_rounds": 2, "clients_per_round": 8}}


def attacked(tiny, name, share=0.25, **changes):
    options = changes.pop("options", {})
    return merged(tiny, {**SHORT, "attackers": {"name": name, "share": share, **options}, **changes})


def moved(progress):
    return {name: tensor.double() for name, tensor in progress.state.adapter.tensors().items()}


def test_if_everybody_sends_three_times_the_opposite_a_mean_goes_three_times_the_other_way(tiny):
    one = {"num_rounds": 1, "clients_per_round": 8}
    sgd = {"optim": "sgd", "learning_rate": 0.1}
    plain = merged(tiny, {"rounds": one, "training": sgd, "aggregation": "coverage_mean"})
    _, start = begun(plain)
    before, honest = moved(start), moved(played(plain))
    config = attacked(tiny, "sign_flip", 0.999, options={"factor": 3.0}, training=sgd, rounds=one)
    progress = played(merged(config, {"aggregation": "coverage_mean"}))
    # int(0.999 * 8) is seven: the eighth is honest.
    attacks = [record.attack for record in progress.clients]
    assert attacks.count("sign_flip") == 7
    assert attacks.count("") == 1
    other = moved(progress)
    along = sum(float(((other[n] - before[n]) * (honest[n] - before[n])).sum()) for n in before)
    length = sum(float((honest[n] - before[n]).square().sum()) for n in before)
    assert -3.5 < along / length < -1.0


@pytest.mark.parametrize("name", ["label_flip", "scaling", "backdoor"])
def test_a_run_with_attackers_is_the_same_every_time_and_another_than_without(tiny, name):
    first, again = played(attacked(tiny, name)), played(attacked(tiny, name))
    assert_same_adapter(first.state.adapter, again.state.adapter)
    honest = moved(played(merged(tiny, SHORT)))
    assert any(not torch.equal(honest[n], tensor) for n, tensor in moved(first).items())
    assert sum(bool(record.attack) for record in first.clients) == 2 * 2


def test_attackers_under_cuts_with_codecs_and_with_masks_tamper_too(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "rich.csv", [4096] * 8)
    cut = {"menu": {"ranks": [2], "depths": ["all"], "cuts": [2], "whole": False}}
    coded = {"menu": {"up_codecs": ["int8"]}}
    masked = {"secure_aggregation": {"masks": "pairwise"}}
    for changes in (cut, coded, masked):
        once = {**changes, "fleet": fleet, "rounds": {"num_rounds": 1, "clients_per_round": 8}}
        honest = moved(played(merged(tiny, once)))
        progress = played(attacked(tiny, "scaling", **once))
        assert sum(bool(record.attack) for record in progress.clients if record.outcome == "ok") == 2
        tampered = moved(progress)
        assert any(not torch.equal(honest[n], tensor) for n, tensor in tampered.items())


def test_a_backdoor_is_measured_in_records_and_report_and_policies_are_not_shown_who_attacks(tiny, tmp_path):
    config = attacked(tiny, "backdoor", 0.5, options={"target": 2}, training={"learning_rate": 3e-2})
    rounds = {"num_rounds": 4, "clients_per_round": 8}
    out = fedray.run(
        merged(config, {"rounds": rounds, "aggregation": "coverage_mean"}), out=tmp_path / "run"
    ).out
    rows = records(out, "rounds")
    assert rows[-1]["attack_success"] > 0.6
    split = [row for row in records(out, "evaluations") if row["split"] == "backdoor"]
    assert [row["accuracy"] for row in split] == [row["attack_success"] for row in rows]
    # Of the tiny run's 40 test rows in four classes those of the three others.
    assert 25 <= split[-1]["num_rows"] <= 35
    assert {row["attack"] for row in records(out, "clients")} == {"", "backdoor"}
    text = Page(fedray.write_report(out).read_text()).text
    assert "50 % of the clients are attackers (backdoor)" in text
    assert "had the trigger" in text


def test_a_policys_history_has_no_attacks(tiny):
    progress = played(attacked(tiny, "sign_flip"))
    assert "attack" not in progress.history()[0]
    assert "loss" in progress.history()[0]


def test_with_scaled_updates_a_mean_falls_and_a_median_holds(tiny):
    rounds = {"num_rounds": 4, "clients_per_round": 8, "eval_rounds": 4}
    options = {"training": {"learning_rate": 3e-2}, "rounds": rounds}
    found = {}
    for rule in ("coverage_mean", "median", "geometric_median"):
        config = attacked(tiny, "sign_flip", options={"factor": 20.0}, aggregation=rule, **options)
        found[rule] = played(config).rounds[-1].loss
    honest = played(merged(tiny, {**options, "aggregation": "coverage_mean"})).rounds[-1].loss
    assert found["coverage_mean"] > 2 * honest
    assert max(found["median"], found["geometric_median"]) < 1.4 * honest


def test_a_simulation_has_no_attackers(tiny):
    with pytest.raises(ConfigError, match="attackers: scaling are after what is learnt"):
        simulated_scene(load_config(attacked(tiny, "scaling")), None)
