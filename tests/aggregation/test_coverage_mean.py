"""Means over who holds what: hand-worked, the laws exactly, and the claims of the methods that use them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.adapter import Adapter, GlobalState, part_of
from fedray.aggregation.coverage_mean import CoverageSum
from fedray.aggregation.presets import make_aggregation


def place(*axes):
    return tuple(None if axis is None else torch.tensor(axis) for axis in axes)


def test_each_entry_is_the_mean_of_those_that_hold_it_by_hand():
    total = CoverageSum(torch.zeros(2, 2))
    total.add(torch.tensor([[4.0, 8.0], [4.0, 8.0]]), None, 1.0)
    total.add(torch.tensor([[1.0]]), place([0], [1]), 3.0)
    # Entry (0, 1): (1 * 8 + 3 * 1) / 4.
    assert total.finish().tolist() == [[4.0, 2.75], [4.0, 8.0]]


def parts(sizes, seed):
    draw = np.random.default_rng(seed)
    return tuple(torch.from_numpy(np.sort(draw.permutation(n)[: draw.integers(1, n + 1)])) for n in sizes)


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=5), weight=st.floats(0.1, 10.0))
def test_untrained_parts_change_nothing_and_what_nobody_holds_stays_to_the_bit(seeds, weight):
    old = torch.randn(5, 4, generator=torch.Generator().manual_seed(seeds[0]))
    still, moved = CoverageSum(old), CoverageSum(old)
    held = torch.zeros(5, 4, dtype=torch.bool)
    for seed in seeds:
        own = parts((5, 4), seed)
        part = part_of(old, own)
        assert torch.equal(part, old[own[0]][:, own[1]])
        still.add(torch.zeros_like(part), own, weight)
        moved.add(torch.ones_like(part), own, weight + seed)
        held[own[0][:, None], own[1]] = True
    assert torch.equal(still.finish(), old)
    # Every covered entry moves by the mean of ones, whatever the mix.
    torch.testing.assert_close(moved.finish() - old, held.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(moved.finish()[~held], old[~held])


def test_equal_parts_are_averaged_as_fedavg_does():
    draw = torch.Generator().manual_seed(1)
    old, deltas = torch.randn(6, generator=draw), torch.randn(3, 6, generator=draw)
    total = CoverageSum(old)
    for weight, delta in zip((1.0, 2.0, 5.0), deltas, strict=True):
        total.add(delta, None, weight)
    expected = old + (deltas * torch.tensor([[1.0], [2.0], [5.0]])).sum(0) / 8
    torch.testing.assert_close(total.finish(), expected)


@pytest.mark.parametrize("rule", ["factor_mean", "product_svd", "stack", "fedit"])
def test_every_rule_averages_weights_over_their_holders(rule):
    state = GlobalState(adapter=Adapter(weights={"w": torch.zeros(3), "v": torch.zeros(2)}))
    total = make_aggregation(rule).start(state)
    first = Adapter(weights={"w": torch.zeros(2)}, places={"w": place([0, 2])})
    total.add(Adapter(weights={"w": torch.tensor([1.0, 3.0])}, places=first.places), first, 1.0)
    second = Adapter(weights={"w": torch.zeros(3)})
    total.add(Adapter(weights={"w": torch.tensor([5.0, 6.0, 7.0])}), second, 1.0)
    weights = total.finish().adapter.weights
    assert weights["w"].tolist() == [3.0, 6.0, 5.0]
    assert weights["v"] is state.adapter.weights["v"]
