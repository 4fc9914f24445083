"""Numbers from outside: exactness, best approximation, rank collapse (papers' claims and closed forms)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState, difference
from fedray.aggregation.presets import make_aggregation

SITE = "linear"


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def dense(factors: Factors) -> Tensor:
    return factors.scale * (factors.b @ factors.a)


def whole(state: GlobalState) -> Tensor:
    product = dense(state.adapter.factors[SITE])
    return product + dense(state.base_delta[SITE]) if state.base_delta else product


def state_with(a: Tensor, outputs: int, scale: float = 2.0, *, train_a: bool = True) -> GlobalState:
    b = torch.zeros(outputs, a.shape[0], dtype=a.dtype)
    factors = Factors(a=a, b=b, scale=scale, train_a=train_a)
    return GlobalState(adapter=Adapter(factors={SITE: factors}))


def random_round(ranks: list[int], generator: torch.Generator, size: int) -> tuple[list[Adapter], Tensor]:
    """Clients that end with random factors, and the weighted mean of their products (equal weights)."""
    trained = [Factors(a=normal(generator, r, size), b=normal(generator, size, r), scale=2.0) for r in ranks]
    mean = sum(dense(f) for f in trained) / len(ranks)
    return [Adapter(factors={SITE: f}) for f in trained], mean


def one_shot(name: str, trained: list[Adapter], size: int, largest: int) -> GlobalState:
    state = state_with(torch.zeros(largest, size, dtype=torch.float64), size)
    accumulator = make_aggregation(name).start(state)
    for adapter in trained:
        f = adapter.factors[SITE]
        zero = Factors(a=torch.zeros_like(f.a), b=torch.zeros_like(f.b), scale=f.scale)
        accumulator.add(adapter, Adapter(factors={SITE: zero}), 1.0)
    return accumulator.finish()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_stacking_unlike_ranks_is_exact_to_rounding():
    trained, mean = random_round([16, 8, 8, 4, 2, 1], torch.Generator().manual_seed(0), 48)
    assert error(whole(one_shot("flora", trained, 48, 16)), mean) < 1e-15


def test_fedit_of_six_random_clients_is_off_by_the_root_of_five_sixths():
    # Independent factors of n clients: |mean(B) mean(A) - mean(BA)|^2 / |mean(BA)|^2 = (n - 1) / n.
    errors = []
    for seed in range(20):
        trained, mean = random_round([8] * 6, torch.Generator().manual_seed(seed), 48)
        errors.append(error(whole(one_shot("fedit", trained, 48, 8)), mean))
    assert sum(errors) / 20 == pytest.approx(math.sqrt(5 / 6), abs=0.01)


@pytest.mark.parametrize("ranks", [(8, 8, 8, 8), (8, 4, 4, 1)], ids=["equal", "mixed"])
@pytest.mark.parametrize("name", ["flora", "ffa_lora", "fedex_lora", "fedit"])
def test_stacks_a_frozen_a_and_a_corrected_base_have_the_mean_product_and_means_of_factors_do_not(
    name, ranks
):
    # Two rounds, so that the second one starts from what the first one left.
    generator, rule = torch.Generator().manual_seed(3), make_aggregation(name)
    state, mean = state_with(normal(generator, 8, 30), 40, train_a=not rule.freezes_a), torch.zeros(40, 30)
    for number in range(2):
        accumulator, changes = rule.start(state), []
        for client, rank in enumerate(ranks):
            sent = rule.send(state, {SITE: rank}, seed=10 * number + client)
            f = sent.factors[SITE]
            moved = normal(generator, *f.a.shape) if f.train_a else torch.zeros_like(f.a)
            delta = replace(f, a=moved, b=normal(generator, *f.b.shape))
            accumulator.add(Adapter(factors={SITE: delta}), sent, 1.0)
            changes.append(dense(replace(f, a=f.a + delta.a, b=f.b + delta.b)) - dense(f))
        mean = whole(state) + sum(changes) / len(ranks)
        state = accumulator.finish()
    assert error(whole(state), mean) > 0.1 if name == "fedit" else error(whole(state), mean) < 1e-14


def test_what_few_hold_is_diluted_by_padding_and_neither_by_svd_nor_by_stacks():
    # 55 % of rank 2 to 10 % of rank 16: FlexLoRA at the largest rank was measured at 0.13, stacks at 2e-16
    # (width 24, scale 16 / r); every factor mean loses most of the mean product there.
    generator, errors = torch.Generator().manual_seed(0), {}
    ranks = [2] * 11 + [4] * 4 + [8] * 3 + [16] * 2
    for _ in range(5):
        trained = [
            Factors(a=normal(generator, r, 24), b=normal(generator, 24, r), scale=16 / r) for r in ranks
        ]
        mean = sum(dense(f) for f in trained) / len(ranks)
        for name in ("fedit", "hetlora", "flexlora", "flora"):
            new = one_shot(name, [Adapter(factors={SITE: f}) for f in trained], 24, 16)
            errors[name] = errors.get(name, 0.0) + error(whole(new), mean) / 5
    assert errors["flora"] < 1e-15
    assert errors["flexlora"] == pytest.approx(0.13, abs=0.02)
    assert min(errors["fedit"], errors["hetlora"]) > 0.75


@settings(max_examples=20, deadline=None, derandomize=True)
@given(ranks=st.lists(st.integers(1, 8), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_in_one_round_no_rule_beats_the_svd_at_any_clients_rank(ranks, seed):
    # Eckart-Young, the one guarantee FlexLoRA has.
    trained, mean = random_round(ranks, torch.Generator().manual_seed(seed), 20)

    def sent_errors(name: str) -> list[float]:
        state = one_shot(name, trained, 20, max(ranks))
        sent = [make_aggregation(name).send(state, {SITE: r}, seed=0) for r in sorted(set(ranks))]
        return [float((dense(adapter.factors[SITE]) - mean).norm()) for adapter in sent]

    best = sent_errors("flexlora")
    for name in ("fedit", "hetlora", "rbla"):
        assert all(ours <= theirs + 1e-9 for ours, theirs in zip(best, sent_errors(name), strict=True))


def locally_trained(sent: Adapter, target: Tensor) -> Adapter:
    f = sent.factors[SITE]
    a, b = f.a.clone(), f.b.clone()
    for _ in range(20):
        gradient = f.scale * (f.scale * b @ a - target)
        a, b = a - 0.1 * b.T @ gradient, b - 0.1 * gradient @ a.T
    return Adapter(factors={SITE: Factors(a=a, b=b, scale=f.scale)})


def after_rounds(name: str, ranks: dict[int, int], target: Tensor, rounds: int = 60) -> Tensor:
    """Clients by rank (all with the same data, so one training stands for all of a rank)."""
    generator = torch.Generator().manual_seed(1)
    size = target.shape[0]
    start = (torch.rand(16, size, dtype=torch.float64, generator=generator) * 2 - 1) / math.sqrt(size)
    state, rule = state_with(start, size, scale=1.0), make_aggregation(name)
    for _ in range(rounds):
        accumulator = rule.start(state)
        for rank, count in ranks.items():
            sent = rule.send(state, {SITE: rank}, seed=0)
            accumulator.add(difference(locally_trained(sent, target), sent), sent, float(count))
        state = accumulator.finish()
    return whole(state)


BEST_OF_RANK_2 = 0.895  # relative error, chosen by the spectrum below


@pytest.fixture(scope="module")
def target() -> Tensor:
    """Rank 16 with two larger singular values, so that rank 2 leaves a relative error of 0.895."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(normal(generator, 24, 16))
    right, _ = torch.linalg.qr(normal(generator, 24, 16))
    values = torch.ones(16, dtype=torch.float64)
    values[:2] = math.sqrt(14 / 2 * (1 / BEST_OF_RANK_2**2 - 1))
    return left @ torch.diag(values) @ right.T


@pytest.mark.parametrize(
    ("name", "wanted", "beyond_rank_2"),
    [
        # Measured before: .79 with 5 % of the energy beyond rank 2, .89 with none, .00, .00. In closed form:
        # the state mean
        # keeps 1/8 of what the one large client learns, 7/8 * 0.895 = 0.783; padding keeps nothing.
        ("flexlora", 7 / 8 * BEST_OF_RANK_2, 0.06),
        ("fedit", BEST_OF_RANK_2, 0.0),
        ("hetlora", BEST_OF_RANK_2, 0.0),
        ("rbla", 0.0, BEST_OF_RANK_2**2),
        ("flexlora_delta", 0.0, BEST_OF_RANK_2**2),
        # 2602.13486's remedy: what the one large client alone has is weighed by it alone, and nothing decays.
        # The last 0.028 is its own: the seven pull the first two ranks where alone they would go.
        ("raflora", 0.028, BEST_OF_RANK_2**2),
    ],
)
def test_seven_clients_of_rank_2_collapse_one_of_rank_16_under_published_states(
    name, wanted, beyond_rank_2, target
):
    found = after_rounds(name, {2: 7, 16: 1}, target)
    energy = torch.linalg.svdvals(found).square()
    assert error(found, target) == pytest.approx(wanted, abs=0.01)
    assert float(energy[2:].sum() / energy.sum()) == pytest.approx(beyond_rank_2, abs=0.01)


@pytest.mark.parametrize("name", ["flexlora", "fedit", "hetlora", "rbla", "flexlora_delta", "raflora"])
def test_with_equal_ranks_no_rule_collapses(name, target):
    assert error(after_rounds(name, {16: 8}, target, rounds=15), target) < 0.01
