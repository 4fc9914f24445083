"""raFLoRA's partitions by hand: each rank is weighed over who has it, and what nobody has stays."""

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.rank_bands import RankBands
from fedray.aggregation.rule import untrained

SITE = "linear"
# M = diag(8, 4, 2), in SVD form.
STATE = GlobalState(
    adapter=Adapter(factors={SITE: Factors(a=torch.eye(3), b=torch.diag(torch.tensor([8.0, 4, 2])), scale=1)})
)


def dense(f):
    return f.scale * (f.b @ f.a)


def grown(*columns):
    """A change of B alone: so much more of each direction that was sent."""
    b = torch.zeros(3, len(columns))
    for index, more in enumerate(columns):
        b[index, index] = more
    return Adapter(factors={SITE: Factors(a=torch.zeros(len(columns), 3), b=b, scale=1)})


def after(form, *updates):
    rule = RankBands(form=form)
    accumulator = rule.start(STATE)
    for update, weight in updates:
        sent = rule.send(STATE, {SITE: update.factors[SITE].rank}, seed=0)
        accumulator.add(update, sent, weight)
    return accumulator.finish()


@pytest.mark.parametrize("form", ["state", "delta"])
def test_each_rank_is_weighed_over_the_clients_that_have_it(form):
    # Rank 1 of weight 3 goes from 8 to 12, rank 2 of weight 1 from (8, 4) to (8, 10): 8 + 3/4 of 4, and the
    # second direction is the second client's alone. FlexLoRA's would be 10 / 4 there. The third stays 2.
    new = after(form, (grown(4.0), 3.0), (grown(0.0, 6.0), 1.0)).adapter.factors[SITE]
    torch.testing.assert_close(dense(new), torch.diag(torch.tensor([11.0, 10, 2])))
    torch.testing.assert_close(new.b.norm(dim=0), torch.tensor([11.0, 10, 2]))


@pytest.mark.parametrize("form", ["state", "delta"])
def test_a_direction_that_overtakes_another_is_the_next_rounds_first(form):
    new = after(form, (grown(0.0, 6.0), 1.0))
    sent = RankBands().send(new, {SITE: 1}, seed=0).factors[SITE]
    torch.testing.assert_close(dense(sent), torch.diag(torch.tensor([0.0, 10, 0])))


@pytest.mark.parametrize("form", ["state", "delta"])
def test_what_few_have_does_not_wear_away_over_rounds_without_training(form):
    state, rule = STATE, RankBands(form=form)
    for _ in range(20):
        accumulator = rule.start(state)
        for rank, weight in ((1, 7.0), (2, 1.0)):
            sent = rule.send(state, {SITE: rank}, seed=0)
            accumulator.add(untrained(sent), sent, weight)
        state = accumulator.finish()
    torch.testing.assert_close(dense(state.adapter.factors[SITE]), dense(STATE.adapter.factors[SITE]))


@pytest.mark.parametrize(("form", "wanted"), [("state", [12.0, 5, 2]), ("delta", [8.0, 7, 2])])
def test_the_same_product_with_its_ranks_the_other_way_round_is_weighed_otherwise(form, wanted):
    # Law L5 is broken. What stands second is its own, what stands first is shared with the other client, who
    # is still at 8: of states 8 / 2 + 8 and (4 + 6) / 2, of changes 6 / 2; in order it would be 8 and 10.
    rule = RankBands(form=form)
    accumulator = rule.start(STATE)
    whole = STATE.adapter.factors[SITE]
    turned = Factors(a=whole.a[[1, 0]], b=whole.b[:, [1, 0]], scale=1.0)
    change = Factors(a=torch.zeros(2, 3), b=torch.tensor([[0.0, 0], [6, 0], [0, 0]]), scale=1.0)
    accumulator.add(Adapter(factors={SITE: change}), Adapter(factors={SITE: turned}), 1.0)
    sent = rule.send(STATE, {SITE: 1}, seed=0)
    accumulator.add(untrained(sent), sent, 1.0)
    torch.testing.assert_close(
        dense(accumulator.finish().adapter.factors[SITE]), torch.diag(torch.tensor(wanted))
    )


def test_a_state_that_is_no_svd_is_decomposed_before_its_ranks_are_counted():
    # The larger direction stands second; rank 1 is sent it, and the smaller one is what nobody has.
    turned = Factors(a=torch.eye(2), b=torch.diag(torch.tensor([1.0, 5.0])), scale=1.0)
    state, rule = GlobalState(adapter=Adapter(factors={SITE: turned})), RankBands()
    sent = rule.send(state, {SITE: 1}, seed=0)
    accumulator = rule.start(state)
    accumulator.add(untrained(sent), sent, 1.0)
    torch.testing.assert_close(dense(accumulator.finish().adapter.factors[SITE]), dense(turned))


@pytest.mark.parametrize("form", ["state", "delta"])
def test_ranks_that_a_small_cohort_does_not_reach_stay_able_to_learn(form):
    a = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    state = GlobalState(adapter=Adapter(factors={SITE: Factors(a=a, b=torch.zeros(8, 4), scale=1.0)}))
    rule = RankBands(form=form)
    sent = rule.send(state, {SITE: 1}, seed=0)
    change = Adapter(factors={SITE: Factors(a=torch.zeros(1, 9), b=torch.ones(8, 1), scale=1.0)})
    accumulator = rule.start(state)
    accumulator.add(change, sent, 1.0)
    new = accumulator.finish().adapter.factors[SITE]
    torch.testing.assert_close(new.a @ new.a.T, torch.eye(4))
    torch.testing.assert_close(dense(new), torch.ones(8, 1) @ a[:1], atol=1e-6, rtol=1e-5)
