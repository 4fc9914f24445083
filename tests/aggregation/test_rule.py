"""Drift as a number, by hand."""

import math

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.rule import drift, relative_change


def state_of(a: list[list[float]], b: list[list[float]]) -> GlobalState:
    f = Factors(a=torch.tensor(a), b=torch.tensor(b), scale=2.0)
    return GlobalState(adapter=Adapter(factors={"linear": f}))


DIAGONAL = state_of([[1.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 2.0]])  # 2 * diag(4, 2)
MIXED = [({"linear": 1}, 1.0), ({"linear": 2}, 1.0)]


def test_zero_padded_states_of_two_ranks_lose_three_quarters_of_the_second_direction():
    # Both sides of rank index 1 are halved: diag(4, 2) becomes diag(4, 0.5), a change of 1.5 / sqrt(20).
    found = drift(make_aggregation("fedit"), DIAGONAL, MIXED)
    assert found == pytest.approx(1.5 / math.sqrt(20))


def test_sites_count_by_their_squared_norms():
    # Products of norm 6 and 8; the first shrinks to a quarter where half of the weight froze it: 4.5 / 10.
    f = {
        site: Factors(a=torch.ones(1, 1), b=torch.full((1, 1), b), scale=2.0)
        for site, b in (("x", 3.0), ("y", 4.0))
    }
    state = GlobalState(adapter=Adapter(factors=f))
    found = drift(make_aggregation("fedit"), state, [({"x": 1, "y": 1}, 1.0), ({"y": 1}, 1.0)])
    assert found == pytest.approx(0.45)


def test_hetlora_loses_by_its_norm_weights():
    # Norms 4 and sqrt(20): index 1 keeps q = sqrt(20) / (4 + sqrt(20)) on each side.
    q = math.sqrt(20) / (4 + math.sqrt(20))
    found = drift(make_aggregation("hetlora"), DIAGONAL, MIXED)
    assert found == pytest.approx(2 * (1 - q * q) / math.sqrt(20), rel=1e-6)


def test_a_site_that_half_of_the_cohort_froze_shrinks_to_a_quarter_under_zero_padded_states():
    found = drift(make_aggregation("fedit"), DIAGONAL, [({}, 1.0), ({"linear": 2}, 1.0)])
    assert found == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["rbla", "flexlora_delta", "raflora", "flora"])
def test_a_rule_that_is_not_lossy_drifts_by_nothing(name):
    assert drift(make_aggregation(name), DIAGONAL, MIXED) == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_learnt_is_nothing_to_lose(name):
    assert (
        drift(make_aggregation(name), state_of([[1.0, 2.0]], [[0.0], [0.0]]), [({"linear": 1}, 1.0)]) == 0.0
    )


def test_equal_ranks_drift_by_no_more_than_rounding():
    for name in ("fedit", "hetlora", "flexlora"):
        assert drift(make_aggregation(name), DIAGONAL, [({"linear": 2}, 1.0)] * 3) < 1e-6


def test_a_change_of_the_base_delta_counts():
    base = {"linear": Factors(a=torch.tensor([[1.0, 0.0]]), b=torch.tensor([[0.0], [1.0]]), scale=4.0)}
    moved = GlobalState(adapter=DIAGONAL.adapter, base_delta=base)
    assert relative_change(DIAGONAL, moved) == pytest.approx(4 / math.sqrt(80))
