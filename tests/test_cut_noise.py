"""Noise on hidden states at a cut: by hand, nothing where it is off, less leakage where it is on."""

import math
from dataclasses import replace

import pytest
import torch
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import fedray
from fedray.assignment import Assignment, lora_on_top
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.mechanism import CutNoise
from fedray.privacy import times_sent
from fedray.scene import set_scene
from fedray.training.boundary import protected
from report_page import Page
from tiny_run import assert_same_adapter, begun, merged, played, save_fleet


@pytest.fixture(scope="module")
def cut(tiny, tmp_path_factory):
    """Everybody under a cut."""
    fleet = save_fleet(tmp_path_factory.mktemp("rich") / "fleet.csv", [4096] * 8)
    menu = {"ranks": [2], "depths": ["all"], "cuts": [2], "whole": False}
    return merged(tiny, {"fleet": fleet, "menu": menu, "rounds": {"num_rounds": 1, "clients_per_round": 4}})


def test_a_token_longer_than_the_norm_is_cut_to_it_and_others_keep_their_bits():
    states = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = protected(states, CutNoise(clip_norm=1.0, noise_multiplier=0.0), 1)
    assert torch.allclose(found[0], torch.tensor([0.6, 0.8]))
    assert torch.equal(found[1:], states[1:])


def test_the_noise_has_the_deviation_it_is_said_to_have_and_follows_from_its_seed():
    states = torch.zeros(200, 100)
    noise = CutNoise(clip_norm=2.0, noise_multiplier=1.5)
    found = protected(states, noise, 1)
    # 20,000 draws: the deviation is known to about half a percent.
    assert float(found.std()) == pytest.approx(3.0, rel=0.03)
    assert float(found.mean()) == pytest.approx(0.0, abs=0.1)
    assert torch.equal(found, protected(states, noise, 1))
    assert not torch.equal(found, protected(states, noise, 2))


@given(st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 2**31))
def test_what_is_cut_keeps_its_direction_and_is_never_longer_than_the_norm(rows, norm, seed):
    states = 5 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    found = protected(states, CutNoise(clip_norm=norm, noise_multiplier=0.0), seed)
    assert float(found.norm(dim=1).max()) <= norm * (1 + 1e-6)
    along = torch.nn.functional.cosine_similarity(found, states)
    assert torch.allclose(along, torch.ones(rows), atol=1e-5)
    assert protected(states, None, seed) is states


def test_a_norm_that_nothing_passes_without_noise_changes_no_bit_and_noise_does(cut):
    plain = played(cut)
    wide = played(merged(cut, {"privacy": {"cut_clip_norm": 1e6}}))
    assert_same_adapter(plain.state.adapter, wide.state.adapter)
    noisy = merged(cut, {"privacy": {"cut_clip_norm": 4.0, "cut_noise_multiplier": 0.5}})
    apart = merged(noisy, {"packs": {"clients_per_pack": 1}})
    first, again = played(noisy), played(apart)
    left, right = first.state.adapter.tensors(), again.state.adapter.tensors()
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    before = plain.state.adapter.tensors()
    assert not all(torch.allclose(left[name], before[name], atol=1e-5) for name in left)


def test_epsilon_is_the_closed_form_and_no_less_than_what_composes_to_it():
    # A row of 8 tokens sent 3 times at z = 40: 24 Gaussians of multiplier 20 are one of 20 / sqrt(24) = 4.08.
    found, delta = CutNoise(clip_norm=3.0, noise_multiplier=40.0).epsilon(8, 3, 1e-5), 1e-5
    sigma = 20 / math.sqrt(24)
    # Balle and Wang's theorem 8 (1805.06530): which delta this epsilon goes with.
    upper = norm.cdf(1 / (2 * sigma) - found * sigma)
    lower = math.exp(found) * norm.cdf(-1 / (2 * sigma) - found * sigma)
    assert upper - lower == pytest.approx(delta, rel=1e-3)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_event.GaussianDpEvent(20.0), 24)
    assert found <= accountant.get_epsilon(delta) <= 1.2 * found
    assert CutNoise(clip_norm=3.0, noise_multiplier=0.0).epsilon(8, 3, delta) is None
    assert CutNoise(clip_norm=3.0, noise_multiplier=1.0).epsilon(8, 0, delta) == 0.0


def test_a_row_is_sent_once_an_epoch_and_below_a_frozen_bottom_once_a_round():
    lora = lora_on_top(4, 4, 2, targets=("query",))
    trained = Assignment(blocks=(0, 1), adapter=lora, split=True, batch_size=4)
    frozen = replace(trained, adapter=lora_on_top(4, 2, 2, targets=("query",)))
    # Ten rows are three steps an epoch.
    assert [times_sent(trained, 10, steps) for steps in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]
    assert times_sent(frozen, 10, 7) == 1
    assert times_sent(replace(trained, split=False, blocks=(0, 1, 2, 3)), 10, 7) == 0


def test_records_tell_epsilon_of_who_was_asked_so_far(cut):
    noisy = merged(
        cut,
        {
            "privacy": {"cut_clip_norm": 4.0, "cut_noise_multiplier": 30.0, "delta": 1e-6},
            "training": {"num_train_epochs": 2},
            "rounds": {"num_rounds": 2, "clients_per_round": 8},
            "audit": {"share": 0.0, "distinct": False},
        },
    )
    progress = played(noisy)
    scene, _ = begun(noisy)
    noise = CutNoise(clip_norm=4.0, noise_multiplier=30.0)
    for record in progress.clients:
        tokens = int(scene.tokens[record.client_id])
        assert record.cut_epsilon == noise.epsilon(tokens, 2 * record.round, 1e-6)
    by_round = [max(r.cut_epsilon for r in progress.clients if r.round == number) for number in (1, 2)]
    assert [record.cut_epsilon for record in progress.rounds] == by_round
    assert by_round[0] < by_round[1]


def test_policies_see_less_leakage_behind_noise(cut):
    measured = merged(cut, {"leakage": {"measure": True, "rows": 64}})
    noisy = merged(measured, {"privacy": {"cut_clip_norm": 4.0, "cut_noise_multiplier": 1.0}})
    plain, hidden = (set_scene(load_config(config), None).leakage for config in (measured, noisy))
    assert hidden[0] < plain[0] - 0.3
    assert hidden[4] < 0.3


def test_the_report_says_what_is_done_at_cuts(cut, tmp_path):
    noisy = merged(cut, {"privacy": {"cut_clip_norm": 4.0, "cut_noise_multiplier": 0.5}})
    text = Page(fedray.write_report(fedray.run(noisy, out=tmp_path / "run").out).read_text()).text
    assert "cut to a norm of 4, and noise of 0.5 times that lies on every entry" in text
    assert "Of the privacy of one row of a client, replaced by another, epsilon" in text


def test_a_norm_where_nothing_crosses_a_cut_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"privacy\.cut_clip_norm has no effect without menu\.cuts"):
        load_config(merged(tiny, {"privacy": {"cut_clip_norm": 1.0}}))
