"""Factor means by hand: two by two, weights 3 and 1, the second client holding rank index 0 alone."""

import math
from dataclasses import replace

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.factor_mean import FactorMean

SITE = "linear"


def factors(a: list[list[float]], b: list[list[float]], scale: float = 1.0) -> Factors:
    return Factors(a=torch.tensor(a), b=torch.tensor(b), scale=scale)


def adapter(a: list[list[float]], b: list[list[float]], scale: float = 1.0) -> Adapter:
    return Adapter(factors={SITE: factors(a, b, scale)})


STATE = GlobalState(adapter=adapter([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]))
ONES = adapter([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
ONES_OF_RANK_1 = adapter([[1.0, 1.0]], [[1.0], [1.0]])


def mixed_round(rule: FactorMean) -> Factors:
    accumulator = rule.start(STATE)
    accumulator.add(ONES, rule.send(STATE, {SITE: 2}, seed=0), 3.0)
    accumulator.add(ONES_OF_RANK_1, rule.send(STATE, {SITE: 1}, seed=0), 1.0)
    return accumulator.finish().adapter.factors[SITE]


def test_a_client_gets_the_leading_rows_of_a_and_columns_of_b():
    sent = FactorMean(mode="zero_pad").send(STATE, {SITE: 1}, seed=0).factors[SITE]
    assert sent.a.tolist() == [[1.0, 0.0]]
    assert sent.b.tolist() == [[2.0], [0.0]]


def test_what_is_sent_is_a_copy_and_carries_no_more_than_its_rank():
    sent = FactorMean(mode="zero_pad").send(STATE, {SITE: 1}, seed=0).factors[SITE]
    assert sent.a.untyped_storage().nbytes() == 2 * 4
    sent.b.fill_(9.0)
    assert STATE.adapter.factors[SITE].b[0, 0] == 2.0


def test_a_site_left_out_is_not_sent_and_the_head_is_sent_whole():
    state = GlobalState(adapter=Adapter(factors=STATE.adapter.factors, head={"bias": torch.ones(3)}))
    sent = FactorMean(mode="dimension").send(state, {}, seed=0)
    assert not sent.factors
    assert sent.head["bias"].tolist() == [1.0, 1.0, 1.0]


def test_zero_padded_deltas_move_index_1_by_three_quarters_of_what_its_holder_learned():
    new = mixed_round(FactorMean(mode="zero_pad", form="delta"))
    assert new.a.tolist() == [[2.0, 1.0], [0.75, 1.75]]
    assert new.b.tolist() == [[3.0, 0.75], [1.0, 2.75]]


def test_zero_padded_states_also_lose_a_quarter_of_what_was_there():
    new = mixed_round(FactorMean(mode="zero_pad", form="state"))
    assert new.a.tolist() == [[2.0, 1.0], [0.75, 1.5]]
    assert new.b.tolist() == [[3.0, 0.75], [1.0, 2.25]]


@pytest.mark.parametrize("form", ["delta", "state"])
def test_the_mean_by_dimension_moves_every_held_entry_by_what_its_holders_learned(form):
    new = mixed_round(FactorMean(mode="dimension", form=form))
    assert new.a.tolist() == [[2.0, 1.0], [1.0, 2.0]]
    assert new.b.tolist() == [[3.0, 1.0], [1.0, 3.0]]


def test_hetlora_weighs_each_client_by_the_norm_of_its_trained_product():
    # Trained: [[3, 1], [1, 3]] @ [[2, 1], [1, 2]] = [[7, 5], [5, 7]], norm sqrt(148);
    # rank 1: [3, 1]^T [2, 1] = [[6, 3], [2, 1]], norm sqrt(50). Equal client weights, as published.
    rule = FactorMean(mode="hetlora", form="state")
    accumulator = rule.start(STATE)
    accumulator.add(ONES, rule.send(STATE, {SITE: 2}, seed=0), 1.0)
    accumulator.add(ONES_OF_RANK_1, rule.send(STATE, {SITE: 1}, seed=0), 1.0)
    new = accumulator.finish().adapter.factors[SITE]
    share = math.sqrt(148) / (math.sqrt(148) + math.sqrt(50))
    torch.testing.assert_close(new.a, torch.tensor([[2.0, 1.0], [share, 2 * share]]))
    torch.testing.assert_close(new.b, torch.tensor([[3.0, share], [1.0, 3 * share]]))


def test_hetlora_leaves_a_site_alone_whose_products_are_all_zero():
    state = GlobalState(adapter=adapter([[1.0, 2.0]], [[0.0], [0.0]]))
    rule = FactorMean(mode="hetlora", form="state")
    accumulator = rule.start(state)
    accumulator.add(adapter([[5.0, 5.0]], [[0.0], [0.0]]), rule.send(state, {SITE: 1}, seed=0), 1.0)
    assert torch.equal(accumulator.finish().adapter.factors[SITE].a, torch.tensor([[1.0, 2.0]]))


def test_a_scale_four_times_the_global_one_counts_twice_on_each_side():
    state = GlobalState(adapter=adapter([[1.0, 0.0]], [[1.0], [0.0]], scale=0.5))
    rule = FactorMean(mode="zero_pad", form="state")
    accumulator = rule.start(state)
    accumulator.add(
        adapter([[0.0, 0.0]], [[0.0], [0.0]], 2.0), adapter([[1.0, 3.0]], [[1.0], [5.0]], 2.0), 1.0
    )
    new = accumulator.finish().adapter.factors[SITE]
    assert new.a.tolist() == [[2.0, 6.0]]
    assert new.b.tolist() == [[2.0], [10.0]]
    assert new.scale == 0.5


def test_b_alone_is_summed_over_all_holders_of_the_site_with_the_scale_in_b():
    # Weights 3, 1 and, without the site, 4; the second client's scale is 4 times the state's.
    state = GlobalState(
        adapter=Adapter(
            factors={SITE: Factors(a=torch.eye(2), b=2.0 * torch.eye(2), scale=1.0, train_a=False)}
        )
    )
    rule = FactorMean(mode="frozen_a")
    accumulator = rule.start(state)
    for rank, scale, weight in ((2, 1.0, 3.0), (1, 4.0, 1.0)):
        f = replace(rule.send(state, {SITE: rank}, seed=0).factors[SITE], scale=scale)
        delta = replace(f, a=torch.zeros_like(f.a), b=torch.ones_like(f.b))
        accumulator.add(Adapter(factors={SITE: delta}), Adapter(factors={SITE: f}), weight)
    accumulator.add(Adapter(), Adapter(), 4.0)
    new = accumulator.finish().adapter.factors[SITE]
    # Index 0: (3 * 1 + 1 * 4) / 4, index 1: 3 * 1 / 4.
    assert new.b.tolist() == [[3.75, 0.75], [1.75, 2.75]]
    assert new.a.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_site_that_half_of_the_weight_froze_moves_half_as_far_under_padding_and_whole_by_dimension():
    for mode, moved in (("zero_pad", 0.5), ("dimension", 1.0)):
        rule = FactorMean(mode=mode, form="delta")
        accumulator = rule.start(STATE)
        accumulator.add(ONES, rule.send(STATE, {SITE: 2}, seed=0), 1.0)
        accumulator.add(Adapter(), Adapter(), 1.0)
        new = accumulator.finish().adapter.factors[SITE]
        assert new.a.tolist() == [[1.0 + moved, moved], [moved, 1.0 + moved]]
