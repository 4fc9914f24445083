"""Noise on hidden states at a cut: by hand, nothing where it is off, less leakage where it is on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedray
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.mechanism import CutNoise
from fedray.scene import set_scene
from fedray.training.boundary import protected
from report_page import Page
from tiny_run import assert_same_adapter, merged, played, save_fleet


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


def test_a_norm_where_nothing_crosses_a_cut_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"privacy\.cut_clip_norm has no effect without menu\.cuts"):
        load_config(merged(tiny, {"privacy": {"cut_clip_norm": 1.0}}))
