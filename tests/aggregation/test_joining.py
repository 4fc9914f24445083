"""Updates of several versions in one state: the papers' sums in numpy, and what makes no such sum."""

import numpy as np
import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState, difference
from fedray.aggregation.joining import Joined, join, refuse_to_join
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config.aggregation_sections import ServerMomentum
from fedray.errors import ConfigError
from fedray.policy import Pace
from fedray.staleness import Staleness
from tiny_run import assert_same_adapter

SITE = "linear"
ROOT = Staleness(name="polynomial", a=0.5)


def adapter(seed, rank=3):
    draw = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    factors = {SITE: Factors(a=some(rank, 5), b=some(4, rank), scale=2.0)}
    return Adapter(factors=factors, head={"weight": some(2, 4)})


NOW = GlobalState(adapter=adapter(0), version=7)


def finished(rule, pace, updates):
    """The state after updates of (delta, sent, weight, staleness)."""
    total = rule.start(NOW)
    for delta, sent, weight, staleness in updates:
        join(
            total, rule, pace,
            Joined(
                delta=delta, sent=sent, weight=weight, staleness=staleness,
                sent_now=lambda: rule.send(NOW, {SITE: 3}, 0),
            ),
        )  # fmt: skip
    return total.finish().adapter


def arrays(one):
    return {name: tensor.numpy() for name, tensor in one.tensors().items()}


BUFFER = [(adapter(10 + k), adapter(20 + k), weight, behind) for k, (weight, behind) in enumerate(
    [(1.0, 0), (1.0, 1), (1.0, 3)]
)]  # fmt: skip


def test_fedbuff_divides_by_the_buffers_size():
    found = arrays(
        finished(make_aggregation("factor_mean"), Pace(goal=3, late="join", staleness=ROOT), BUFFER)
    )
    for name, old in arrays(NOW.adapter).items():
        # s = 1 / sqrt(1 + staleness): 1, 1 / sqrt(2), 1 / 2.
        deltas = [arrays(delta)[name] for delta, *_ in BUFFER]
        expected = old + (deltas[0] + deltas[1] / np.sqrt(2) + deltas[2] / 2) / 3
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12)


def test_fedscales_sum_divides_by_what_the_updates_count():
    pace = Pace(goal=3, late="join", staleness=ROOT, normalizer="sum")
    found = arrays(finished(make_aggregation("factor_mean"), pace, BUFFER))
    counts = [1, 1 / np.sqrt(2), 0.5]
    for name, old in arrays(NOW.adapter).items():
        moved = sum(count * arrays(delta)[name] for count, (delta, *_) in zip(counts, BUFFER, strict=True))
        np.testing.assert_allclose(found[name], old + moved / sum(counts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing", [0.6, 1.0])
def test_fedasync_mixes_the_state_with_what_the_client_ended_with(mixing):
    # x <- (1 - c) x + c x_k, c = mixing / sqrt(1 + 3): of factors and of the head.
    pace = Pace(goal=1, late="join", staleness=ROOT, mixing=mixing)
    delta, sent, weight, behind = BUFFER[2]
    found = arrays(finished(make_aggregation("rbla"), pace, [(delta, sent, 5.0 * weight, behind)]))
    for name, old in arrays(NOW.adapter).items():
        ended = arrays(sent)[name] + arrays(delta)[name]
        expected = (1 - mixing / 2) * old + mixing / 2 * ended
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12)


def test_products_move_by_the_same_share():
    rule = make_aggregation("flexlora_delta")
    delta, sent, _, behind = BUFFER[2]
    pace = Pace(goal=1, late="join", staleness=ROOT)
    found = finished(rule, pace, [(delta, sent, 1.0, behind)]).factors[SITE]

    def product(f, change=None):
        a, b = (f.a, f.b) if change is None else (f.a + change.a, f.b + change.b)
        return f.scale * (b @ a)

    old, own = NOW.adapter.factors[SITE], sent.factors[SITE]
    whole = product(old) + 0.5 * (product(own, delta.factors[SITE]) - product(own))
    # The state keeps rank 3 of it: the best such approximation.
    u, s, v = torch.linalg.svd(whole)
    torch.testing.assert_close(product(found), (u[:, :3] * s[:3]) @ v[:3])


def test_constant_staleness_is_the_rules_own_round_to_the_bit():
    for name in ("factor_mean", "rbla", "flexlora_delta"):
        rule = make_aggregation(name)
        total = rule.start(NOW)
        sent = rule.send(NOW, {SITE: 3}, 0)
        updates = [(adapter(10 + k), sent, float(1 + k), 0) for k in range(3)]
        for delta, base, weight, _ in updates:
            total.add(delta, base, weight)
        assert_same_adapter(total.finish().adapter, finished(rule, Pace(goal=3, late="join"), updates))


def test_stale_updates_that_changed_nothing_change_nothing_in_sums_of_deltas():
    rule = make_aggregation("factor_mean")
    nothing = difference(adapter(3), adapter(3))
    found = finished(rule, Pace(goal=1, late="join", staleness=ROOT), [(nothing, adapter(3), 1.0, 4)])
    for name, tensor in NOW.adapter.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=1e-15, atol=1e-15)


JOINING = Pace(goal=1, late="join")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("flora", "moves the frozen weights"),
        ("fedex_lora", "moves the frozen weights"),
        ("fedit", "changes the state even where nothing was trained"),
        ("hetlora", "changes the state even where nothing was trained"),
        ("flexlora", "changes the state even where nothing was trained"),
    ],
)
def test_rules_whose_sum_means_nothing_over_versions_are_refused(name, why):
    with pytest.raises(ConfigError, match=f"aggregation '{name}' {why}.* choose factor_mean"):
        refuse_to_join(JOINING, make_aggregation(name))
    refuse_to_join(Pace(goal=1), make_aggregation(name))


def test_rules_that_weigh_updates_themselves_are_refused_and_a_servers_optimizer_is_not():
    with pytest.raises(ConfigError, match=r"weighs updates by itself \(it breaks L3\)"):
        refuse_to_join(JOINING, make_aggregation("factor_mean", {"mode": "hetlora", "form": "delta"}))
    stepped = ServerStepped(rule=make_aggregation("factor_mean"), optimizer=ServerMomentum())
    refuse_to_join(JOINING, stepped)
    refuse_to_join(JOINING, make_aggregation("ffa_lora"))
