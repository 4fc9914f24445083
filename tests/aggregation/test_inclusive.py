"""InclusiveFL's momentum distillation against cases worked out by hand."""

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.inclusive import Inclusive, block_of, depth_of
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config.aggregation_sections import ServerMomentum
from fedray.errors import ConfigError

SITES = [f"layer.{block}.query" for block in range(3)]


def adapter(*blocks, train_a=True, dtype=torch.float64):
    """One rank at each leading site: A and B are these numbers."""
    return Adapter(
        factors={
            site: Factors(
                a=torch.tensor([[float(own)]], dtype=dtype),
                b=torch.tensor([[10.0 * own]], dtype=dtype),
                scale=1.0,
                train_a=train_a,
            )
            for site, own in zip(SITES, blocks, strict=False)
        }
    )


def one_round(state, *changes, rule=None):
    """A round of clients of these depths, each with a weight of 1."""
    total = (rule or Inclusive()).start(state)
    for own in changes:
        sent = Adapter(factors={site: state.adapter.factors[site] for site in own.factors})
        total.add(own, sent, 1.0)
    return total.finish()


def numbers(state):
    return [round(float(state.adapter.factors[site].a), 9) for site in SITES]


START = GlobalState(adapter=adapter(0, 0, 0))


def test_the_first_round_is_the_mean_over_who_holds_a_block():
    after = one_round(START, adapter(1), adapter(3, 5, 9))
    assert numbers(after) == [2.0, 5.0, 9.0]


def test_a_shallow_clients_last_block_takes_a_fifth_from_the_blocks_above_it_in_the_last_round():
    first = one_round(START, adapter(1), adapter(3, 5, 9))
    second = one_round(first, adapter(10), adapter(20, 30, 40))
    # Block 0 of the shallow one: 0.8 * 10 + 0.2 * mean(5, 9) = 9.4; with the deep one's 20 a mean of 14.7.
    assert numbers(second) == [2.0 + 14.7, 5.0 + 30.0, 9.0 + 40.0]
    assert float(second.adapter.factors[SITES[0]].b) == pytest.approx(10 * (2.0 + 14.7))


def test_of_three_depths_each_learns_from_the_next_deeper_one_alone():
    first = one_round(START, adapter(1), adapter(1, 2), adapter(1, 4, 8))
    second = one_round(first, adapter(0), adapter(0, 0), adapter(0, 0, 0))
    # The one block learns block 1 of those with two (2); the second of two learns block 2 of three (8).
    moved = [now - was for now, was in zip(numbers(second), numbers(first), strict=True)]
    assert moved == pytest.approx([0.2 * 2 / 3, 0.2 * 8 / 2, 0.0])


def test_means_of_the_last_round_alone_are_kept_and_of_no_block_that_nobody_asks_for():
    first = one_round(START, adapter(1), adapter(3, 5, 9))
    kept = {name for name in first.moments if name.startswith("deeper/3/")}
    assert kept == {f"deeper/3/{site}.lora_{side}" for site in SITES[1:] for side in "AB"}
    second = one_round(first, adapter(1, 1))
    assert not any(name.startswith(("deeper/1/", "deeper/3/")) for name in second.moments)


def test_fewer_ranks_learn_the_leading_ones():
    wide = {site: Factors(a=torch.zeros(2, 1), b=torch.zeros(1, 2), scale=1.0) for site in SITES}
    state = GlobalState(adapter=Adapter(factors=wide))
    change = {site: Factors(a=torch.tensor([[1.0], [7.0]]), b=torch.zeros(1, 2), scale=1.0) for site in SITES}
    first = one_round(state, Adapter(factors=change))
    sent = Adapter(factors={SITES[0]: Factors(a=torch.zeros(1, 1), b=torch.zeros(1, 1), scale=1.0)})
    total = Inclusive().start(first)
    total.add(sent, sent, 1.0)
    after = total.finish().adapter.factors[SITES[0]].a
    assert after.flatten().tolist() == pytest.approx([1.2, 7.0])


def test_weights_of_a_block_learn_as_factors_do():
    names = [f"layer.{block}.bias" for block in range(2)]
    state = GlobalState(adapter=Adapter(weights={name: torch.zeros(2) for name in names}))

    def play(state, *rows):
        total = Inclusive().start(state)
        for row in rows:
            own = {name: torch.tensor(value) for name, value in zip(names, row, strict=False)}
            total.add(Adapter(weights=own), Adapter(weights={n: state.adapter.weights[n] for n in own}), 1.0)
        return total.finish()

    first = play(state, [[1.0, 1.0]], [[3.0, 3.0], [10.0, 20.0]])
    second = play(first, [[0.0, 0.0]])
    assert second.adapter.weights[names[0]].tolist() == pytest.approx([2.0 + 2.0, 2.0 + 4.0])


def test_an_a_that_nobody_trains_stays_and_only_b_learns():
    frozen = GlobalState(adapter=adapter(1, 1, 1, train_a=False))
    zero = adapter(0, 0, 0, train_a=False)
    first = one_round(frozen, adapter(0, 2, 2, train_a=False))
    second = one_round(first, Adapter(factors={SITES[0]: zero.factors[SITES[0]]}))
    assert float(second.adapter.factors[SITES[0]].a) == 1.0
    assert float(second.adapter.factors[SITES[0]].b) == pytest.approx(10.0 + 0.2 * 20.0)


def test_it_goes_with_a_servers_optimizer():
    rule = ServerStepped(rule=Inclusive(), optimizer=ServerMomentum(learning_rate=1.0, beta1=0.0))
    first = one_round(START, adapter(1), adapter(3, 5, 9), rule=rule)
    second = one_round(first, adapter(10), adapter(20, 30, 40), rule=rule)
    assert numbers(second) == [2.0 + 14.7, 35.0, 49.0]


def test_a_block_is_known_by_its_number():
    assert block_of("encoder.layer.11.attention.self.query.lora_A") == 11
    assert block_of("h.0.attn.c_attn") == 0
    assert block_of("embeddings.word_embeddings.weight") is None
    assert depth_of(["h.0.x", "h.4.x", "top"]) == 5
    assert depth_of(["top"]) == 0


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'beta' of inclusivefl is from 0 to below 1, found 1"):
        Inclusive(beta=1.0)
    assert make_aggregation("inclusivefl").breaks == {"L1", "L5", "L6"}
