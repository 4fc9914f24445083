"""Which units a width keeps: counted as HeteroFL's and FedRolex's definitions count, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.width import Width


def ffn(share, window="prefix", turn=0, size=8):
    return Width(share=share, window=window, turn=turn).indices("ffn", size, 0).tolist()


def test_a_prefix_keeps_the_share_rounded_up_as_heterofl_counts():
    # 2010.01264: arange(ceil(n * rate)); its rates and a size that they do not divide.
    assert [len(ffn(rate, size=10)) for rate in (0.5, 0.25, 0.125, 0.0625)] == [5, 3, 2, 1]
    assert ffn(0.25) == [0, 1]
    # 0.2 * 5 = 1.0000000000000002 in floating point, and one unit by hand.
    assert ffn(0.2, size=5) == [0]


@given(small=st.floats(0.01, 0.98), more=st.floats(0.001, 0.5), size=st.integers(1, 64))
def test_smaller_prefixes_lie_in_larger_ones(small, more, size):
    large = min(small + more, 0.99)
    assert set(ffn(small, size=size)) <= set(ffn(large, size=size))


def test_a_rolling_window_is_fedrolexs_and_covers_every_unit_alike():
    # 2212.01548's code: torch.roll(arange(n), round)[:k]; rolled by 3 of 8, the first four are 5, 6, 7, 0.
    assert ffn(0.5, "rolling", 3) == sorted(np.roll(np.arange(8), 3)[:4].tolist()) == [0, 5, 6, 7]
    held = np.concatenate([ffn(0.5, "rolling", turn) for turn in range(8)])
    assert np.bincount(held).tolist() == [4] * 8


def test_random_units_differ_by_turn_block_and_axis_and_by_nothing_else():
    width = Width(share=0.5, axes=("heads", "ffn"), window="random", turn=5)
    drawn = [width.indices(axis, 64, block) for axis in ("heads", "ffn") for block in (-1, 0, 1)]
    assert all(len(np.unique(own)) == 32 for own in drawn)
    assert len({tuple(own) for own in drawn}) == 6
    np.testing.assert_array_equal(width.indices("ffn", 64, 1), drawn[-1])


def test_salient_units_lead_the_order_of_their_block_and_without_an_order_there_are_none():
    width = Width(share=0.5, axes=("heads", "ffn"), window="salient")
    order = {("ffn", 0): np.array([3, 0, 2, 1]), ("ffn", 1): np.array([1, 2, 3, 0])}
    assert [width.indices("ffn", 4, block, order).tolist() for block in (0, 1)] == [[0, 3], [1, 2]]
    with pytest.raises(ConfigError, match=r"no order of them was measured; set menu.width_window: salient"):
        width.indices("ffn", 4, 0)


def test_an_axis_that_is_not_named_stays_whole():
    assert Width(share=0.5).indices("heads", 4, 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"share": 1.0}, "share is above 0 and below 1, found 1.0"),
        ({"share": 0.5, "axes": ("ffn", "heads")}, r"some of hidden, heads, head_dim, ffn, in this order"),
        ({"share": 0.5, "axes": ()}, "some of hidden"),
        ({"share": 0.5, "window": "last"}, "one of prefix, rolling, random, salient, found 'last'"),
        ({"share": 0.5, "turn": 1}, "0 for a prefix, which does not move; found 1"),
        ({"share": 0.5, "window": "salient", "turn": 2}, "0 for salient units, which do not move; found 2"),
    ],
)
def test_what_is_out_of_range_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Width(**given)


def test_words_say_what_is_kept_and_where():
    assert str(Width(share=0.25, axes=("heads", "ffn"))) == "0.25 of heads and ffn"
    assert str(Width(share=0.5, window="rolling", turn=7)) == "0.5 of ffn, rolling at 7"
    assert str(Width(share=0.5, window="salient")) == "0.5 of ffn, salient"
