"""Clipping one update, and the place where noise and masks go."""

import math
from dataclasses import replace

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.transforms import ClipByNorm
from fedray.errors import ConfigError, TrainingError

# Norm 13: 3, 4 in the factors and 12 in the head.
DELTA = Adapter(
    factors={"linear": Factors(a=torch.tensor([[3.0, 0.0]]), b=torch.tensor([[0.0], [4.0]]), scale=2.0)},
    head={"bias": torch.tensor([12.0])},
)
ZERO = Adapter(
    factors={"linear": Factors(a=torch.zeros(1, 2), b=torch.zeros(2, 1), scale=2.0)},
    head={"bias": torch.zeros(1)},
)
STATE = GlobalState(adapter=ZERO)


def test_an_update_of_norm_13_clipped_to_6_and_a_half_is_halved():
    clipped = ClipByNorm(max_norm=6.5)(DELTA, 1.0)
    assert clipped.factors["linear"].a.tolist() == [[1.5, 0.0]]
    assert clipped.factors["linear"].b.tolist() == [[0.0], [2.0]]
    assert clipped.factors["linear"].scale == 2.0
    assert clipped.head["bias"].tolist() == [6.0]


def test_an_update_within_the_norm_passes_as_it_is():
    assert ClipByNorm(max_norm=13.0)(DELTA, 1.0) is DELTA


def test_an_a_that_nobody_trains_is_no_part_of_the_norm():
    frozen = replace(
        DELTA,
        factors={"linear": replace(DELTA.factors["linear"], a=torch.zeros(()).expand(1, 2), train_a=False)},
    )
    # 4 in B and 12 in the head: the root of 160.
    assert ClipByNorm(max_norm=math.sqrt(160) + 1e-3)(frozen, 1.0) is frozen
    clipped = ClipByNorm(max_norm=math.sqrt(40))(frozen, 1.0)
    assert clipped.head["bias"].tolist() == pytest.approx([6.0])
    assert clipped.tensors().keys() == frozen.tensors().keys()


@pytest.mark.parametrize("name", ["fedit", "hetlora", "rbla", "flexlora", "raflora", "flora"])
def test_clipping_happens_to_each_update_before_the_sum(name):
    accumulator = make_aggregation(name, {"clip_norm": 6.5}).start(STATE)
    accumulator.add(DELTA, ZERO, 1.0)
    accumulator.add(ZERO, ZERO, 1.0)
    assert accumulator.finish().adapter.head["bias"].tolist() == [3.0]


def test_transforms_run_in_order_and_see_the_weight():
    def masked(delta: Adapter, weight: float) -> Adapter:
        assert weight == 4.0
        return Adapter(factors=delta.factors, head={"bias": delta.head["bias"] * 0.0})

    rule = FactorMean(mode="dimension", transforms=(masked, ClipByNorm(max_norm=2.5)))
    accumulator = rule.start(STATE)
    accumulator.add(DELTA, ZERO, 4.0)
    new = accumulator.finish().adapter
    # The head's 12 is masked first, so 5 is left and clipping halves it.
    assert new.factors["linear"].a.tolist() == [[1.5, 0.0]]
    assert new.head["bias"].tolist() == [0.0]


def test_a_transform_that_breaks_an_update_is_refused_and_nothing_is_added():
    rule = FactorMean(
        mode="dimension", transforms=(lambda delta, weight: Adapter(head={"bias": torch.ones(1) / 0}),)
    )
    accumulator = rule.start(STATE)
    with pytest.raises(TrainingError, match=r"only one side has linear\.lora_A"):
        accumulator.add(DELTA, ZERO, 1.0)
    assert accumulator.finish() is STATE


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_to_clip_to_is_finite_and_above_zero(norm):
    with pytest.raises(ConfigError, match="clip_norm must be a finite number above 0"):
        ClipByNorm(max_norm=norm)
