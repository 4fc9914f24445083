"""Products of factors against what their dense forms give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.adapter import Factors
from fedray.aggregation.lowrank import (
    LowRank,
    RunningSum,
    best_of_rank,
    bounded,
    frobenius,
    is_in_svd_form,
    stacked,
    trimmed,
)


def part(seed: int, outputs: int, rank: int, inputs: int) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    b, a = (
        torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((outputs, rank), (rank, inputs))
    )
    return LowRank(b, a)


def dense(low: LowRank) -> torch.Tensor:
    return low.b @ low.a


sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 9))  # outputs, rank, inputs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(size=sizes, rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_best_of_a_rank_is_the_dense_svd_truncated(size, rank, seed):
    low = part(seed, *size)
    u, values, vt = torch.linalg.svd(dense(low), full_matrices=False)
    wanted = u[:, :rank] @ torch.diag(values[:rank]) @ vt[:rank]
    found = best_of_rank(low, rank, scale=0.5)
    assert found.rank == rank
    torch.testing.assert_close(0.5 * (found.b @ found.a), wanted)
    assert is_in_svd_form(found)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(size=sizes, seed=st.integers(0, 99))
def test_norms_and_bounds_are_those_of_the_dense_product(size, seed):
    low = part(seed, *size)
    assert frobenius(low) == pytest.approx(float(dense(low).norm()))
    small = bounded(low)
    assert small.a.shape[0] == min(size)
    torch.testing.assert_close(dense(small), dense(low))


def test_a_difference_of_equals_has_a_norm_of_rounding():
    low = part(0, 30, 4, 20)
    assert frobenius(stacked([low, LowRank(-low.b, low.a)])) < 1e-14 * frobenius(low)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes_=st.lists(st.integers(1, 4), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_running_sum_is_the_dense_sum_on_both_sides_of_the_bound(sizes_, seed):
    running, wanted = RunningSum(), torch.zeros(6, 7, dtype=torch.float64)
    for k, rank in enumerate(sizes_):
        low = part(seed + k, 6, rank, 7)
        running.add(low, k + 0.5)
        wanted += (k + 0.5) * dense(low)
    found = running.value(2.0)
    assert found is not None
    assert found.a.shape[0] <= 6
    torch.testing.assert_close(dense(found), 2.0 * wanted)


def test_a_sum_is_trimmed_to_the_ranks_it_has_and_to_none_where_its_parts_cancel():
    generator = torch.Generator().manual_seed(5)
    part = LowRank(
        torch.randn(30, 3, dtype=torch.float64, generator=generator),
        torch.randn(3, 20, dtype=torch.float64, generator=generator),
    )
    minus = LowRank(-part.b, part.a)
    assert trimmed(stacked([part, minus])).a.shape == (0, 20)
    thrice = trimmed(stacked([part, part, part]))
    assert thrice.b.shape == (30, 3)
    torch.testing.assert_close(thrice.b @ thrice.a, 3 * part.b @ part.a)


def test_an_empty_sum_is_none():
    assert RunningSum().value(1.0) is None


def factors(a: list[list[float]], b: list[list[float]]) -> Factors:
    return Factors(a=torch.tensor(a), b=torch.tensor(b), scale=1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (factors([[5.0, 5.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]), True),  # nothing, whatever A is
        (factors([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]), True),
        (factors([[1.0, 0.0], [9.0, 9.0]], [[2.0, 0.0], [0.0, 0.0]]), True),  # an idle rank's A is free
        (factors([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]), False),  # ascending
        (factors([[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]), False),  # a row of length 2
        (factors([[1.0, 0.0], [0.6, 0.8]], [[2.0, 0.0], [0.0, 1.0]]), False),  # rows at an angle
        (factors([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 1.0]]), False),  # columns at an angle
        (factors([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1e-4], [0.0, 1e-4]]), False),  # small ones, too
    ],
)
def test_svd_form_is_recognised(found, expected):
    assert is_in_svd_form(found) is expected
