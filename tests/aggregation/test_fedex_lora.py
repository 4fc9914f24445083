"""FedEx-LoRA by hand and against its published code, written again: means, and the rest beside the base."""

import numpy as np
import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.fedex_lora import FedExLora
from fedray.aggregation.rule import one_adapter

SITE = "linear"


def adapter(a, b, scale=2.0):
    return Adapter(factors={SITE: Factors(a=torch.tensor(a), b=torch.tensor(b), scale=scale)})


def dense(f: Factors) -> torch.Tensor:
    return f.scale * (f.b @ f.a)


def after(state: GlobalState, *updates: tuple[Adapter, int]) -> GlobalState:
    """A round of clients with equal weights: each one's delta and rank."""
    rule = FedExLora()
    accumulator = rule.start(state)
    for delta, rank in updates:
        accumulator.add(delta, rule.send(state, {SITE: rank}, seed=0), 1.0)
    return accumulator.finish()


STATE = GlobalState(adapter=adapter([[1.0, 0.0]], [[1.0], [0.0]]))
MOVED = adapter([[2.0, 0.0]], [[0.0], [2.0]])
STILL = adapter([[0.0, 0.0]], [[0.0], [0.0]])


def test_factors_become_their_means_and_the_base_takes_what_those_leave_out():
    # Products end at 2 (1,2)(3,0) = [[6,0],[12,0]] and 2 (1,0)(1,0) = [[2,0],[0,0]]; mean: [[4,0],[6,0]].
    new = after(STATE, (MOVED, 1), (STILL, 1))
    factors = new.adapter.factors[SITE]
    assert factors.a.tolist() == [[2.0, 0.0]]
    assert factors.b.tolist() == [[1.0], [1.0]]
    assert dense(factors).tolist() == [[4.0, 0.0], [4.0, 0.0]]
    torch.testing.assert_close(dense(new.base_delta[SITE]), torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(dense(one_adapter(new).factors[SITE]), torch.tensor([[4.0, 0.0], [6.0, 0.0]]))


def test_one_client_leaves_nothing_to_the_base_and_so_do_clients_that_trained_alike():
    assert not after(STATE, (MOVED, 1)).base_delta
    assert not after(STATE, (MOVED, 1), (MOVED, 1), (MOVED, 1)).base_delta
    assert not after(STATE, (STILL, 1), (STILL, 1)).base_delta


@pytest.mark.parametrize("num_clients", [2, 3, 6])
def test_equal_ranks_end_where_the_published_code_takes_them(num_clients):
    # aggregate_models_fedex of the paper's repository: means of A and B, and (mean(B A) - B A) alpha / r.
    random, rank, scale = np.random.default_rng(num_clients), 3, 0.5
    a, b = random.normal(size=(rank, 20)), random.normal(size=(24, rank))
    trained = [(random.normal(size=a.shape), random.normal(size=b.shape)) for _ in range(num_clients)]
    mean_a, mean_b = (np.mean([pair[side] for pair in trained], axis=0) for side in (0, 1))
    residue = np.mean([own_b @ own_a for own_a, own_b in trained], axis=0) - mean_b @ mean_a
    state = GlobalState(adapter=adapter(a, b, scale))
    new = after(state, *((adapter(own_a - a, own_b - b, scale), rank) for own_a, own_b in trained))
    np.testing.assert_allclose(new.adapter.factors[SITE].a, mean_a, atol=1e-12)
    np.testing.assert_allclose(new.adapter.factors[SITE].b, mean_b, atol=1e-12)
    np.testing.assert_allclose(dense(new.base_delta[SITE]), residue * scale, atol=1e-12)
    # A sum over K clients of what lies around their mean has K - 1 directions, each of r ranks.
    assert new.base_delta[SITE].rank == (num_clients - 1) * rank


def test_what_the_base_takes_adds_up_and_stops_growing_at_the_narrower_side():
    draw = torch.Generator().manual_seed(0)
    state, ranks = GlobalState(adapter=adapter([[1.0] * 5], [[1.0]] * 6)), []
    for _ in range(4):
        pair = [
            Adapter(
                factors={
                    SITE: Factors(
                        a=torch.randn(1, 5, generator=draw), b=torch.randn(6, 1, generator=draw), scale=2.0
                    )
                }
            )
            for _ in range(3)
        ]
        before = state
        state = after(state, *((delta, 1) for delta in pair))
        ranks.append(state.base_delta[SITE].rank)
        old, changes = before.adapter.factors[SITE], []
        for delta in pair:
            f = delta.factors[SITE]
            changes.append(2.0 * ((old.b + f.b) @ (old.a + f.a)) - dense(old))
        wanted = dense(one_adapter(before).factors[SITE]) + sum(changes) / 3
        torch.testing.assert_close(dense(one_adapter(state).factors[SITE]), wanted, rtol=1e-4, atol=1e-4)
    assert ranks == [2, 4, 5, 5]
