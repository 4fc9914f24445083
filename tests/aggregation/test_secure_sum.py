"""Masked sums: exact whoever drops out and whatever ranks, uniform words to the server, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.chosen import choose_rule
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.secure_sum import (
    MASKED,
    SecureSum,
    as_masked,
    fixed_point,
    masked,
    secure_sum,
    with_masking,
)
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config import load_config
from fedray.config.aggregation_sections import ServerMomentum
from fedray.errors import ConfigError, TrainingError
from fedray.masking import Masking
from fedray.testing.law_cases import aggregated, contributions, law_cases, started_state


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.adapter.tensors().items()}


def masking_of(state, clients, weights=None, *, needed=2, bits=24):
    return Masking(
        seed=11,
        round=3,
        clients=tuple(clients),
        total_weight=float(sum(weights or [1.0] * len(clients))),
        shapes=shapes_of(state),
        fraction_bits=bits,
        needed=needed,
    )


def words_of(masking, client, part):
    delta, _, weight = part
    return masked(masking, client, delta, weight)[MASKED].numpy().view(np.uint32)


def summed(rule, state, masking, parts, survivors):
    """The state after those came, of clients that are their places among the parts."""
    total = replace(secure_sum(rule), masking=masking).start(state)
    for client in survivors:
        delta, sent, weight = parts[client]
        total.add(as_masked(client, masked(masking, client, delta, weight)), sent, weight)
    return total.finish()


MEANS = [FactorMean(mode=mode) for mode in ("zero_pad", "dimension", "frozen_a")]


@pytest.mark.parametrize("rule", MEANS, ids=lambda rule: rule.mode)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=law_cases(), gone=st.integers(0, 3))
def test_what_masks_leave_is_taken_away_to_the_last_bit_and_the_mean_is_the_rules_own(rule, case, gone):
    state = started_state(rule, case)
    parts = contributions(rule, state, case)
    weights = [weight for _, _, weight in parts]
    masking = masking_of(state, range(len(parts)), weights, needed=1)
    survivors = [client for client in range(len(parts)) if len(parts) == 1 or client != gone]
    plain = sum(fixed_point(masking, *parts[c][::2]) for c in survivors)
    seen = sum(
        masked(masking, c, parts[c][0], parts[c][2])[MASKED].numpy().view(np.uint32) for c in survivors
    )
    assert (seen - masking.left_in(survivors) == plain).all()
    ours = summed(rule, state, masking, parts, survivors).adapter.tensors()
    theirs = aggregated(rule, state, [parts[c] for c in survivors]).adapter.tensors()
    # Half of the last bit for every client, over the share of all weights that the holders have.
    bound = len(parts) * 2**-25 * masking.total_weight / min(weights)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1.01 * bound) for name in theirs)


def twenty_clients():
    """Of ranks 1 to 4 at one site, some of them with a part of a weight; seeded numbers."""
    random = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    state = GlobalState(
        adapter=Adapter(
            factors={"q": Factors(a=normal(4, 30), b=normal(20, 4), scale=2.0)},
            head={"weight": normal(5, 30)},
            weights={"w": normal(12, 9)},
        )
    )
    parts = []
    for client in range(20):
        rank, rows = 1 + client % 4, torch.arange(client % 3, 12, 2)
        places = {"w": (rows, None)}
        weight = normal(len(rows), 9)
        delta, sent = (
            Adapter(
                factors={"q": Factors(a=normal(rank, 30), b=normal(20, rank), scale=2.0)},
                head={"weight": normal(5, 30)},
                weights={"w": weight},
                places=places,
            )
            for _ in range(2)
        )
        parts.append((delta, sent, float(8 + client)))
    return state, parts


def test_the_sum_of_mixed_ranks_and_slices_is_the_plain_fixed_point_one_with_three_in_ten_gone():
    state, parts = twenty_clients()
    masking = masking_of(state, range(20), [weight for _, _, weight in parts])
    survivors = [client for client in range(20) if client % 10 not in (1, 4, 7)]
    assert len(survivors) == 14
    words = [words_of(masking, c, parts[c]) for c in survivors]
    plain = np.zeros(masking.length, np.uint32)
    for client in survivors:
        plain += fixed_point(masking, parts[client][0], parts[client][2])
    assert (sum(words) - masking.left_in(survivors) == plain).all()
    # By hand: the first entry of the head, and one of the weight that every second client of three holds.
    shares = {c: parts[c][2] / sum(weight for _, _, weight in parts) for c in survivors}
    by_hand = sum(np.rint(shares[c] * float(parts[c][0].head["weight"][0, 0]) * 2**24) for c in survivors)
    place = list(masking.shapes).index("head.weight")
    start = sum(int(np.prod(shape)) for shape in list(masking.shapes.values())[:place])
    assert plain.view(np.int32)[start] == by_hand
    after = summed(FactorMean(mode="dimension"), state, masking, parts, survivors).adapter
    held = [c for c in survivors if 4 in parts[c][0].places["w"][0].tolist()]
    changes = [
        parts[c][2] * float(parts[c][0].weights["w"][parts[c][0].places["w"][0] == 4][0, 3]) for c in held
    ]
    mean = sum(changes) / sum(parts[c][2] for c in held)
    assert float(after.weights["w"][4, 3] - state.adapter.weights["w"][4, 3]) == pytest.approx(mean, abs=1e-5)


def test_a_masked_update_is_uniform_words_to_the_server_and_an_unmasked_one_is_not():
    state, parts = twenty_clients()
    state = replace(state, adapter=replace(state.adapter, head={"weight": torch.zeros(400, 30)}))
    delta = replace(parts[3][0], head={"weight": torch.ones(400, 30)})
    masking = masking_of(state, range(20), [20.0] * 20)
    plain = fixed_point(masking, delta, 20.0)
    seen = plain + masking.mask_of(3)

    def chances(words):
        bytes_ = words >> 24, words & 255
        counted = [chisquare(np.bincount(own, minlength=256)).pvalue for own in bytes_]
        return [*counted, kstest(words / 2**32, "uniform").pvalue]

    # Of uniform words these are uniform themselves, whoever masks in whichever round.
    rounds = [replace(masking, round=number) for number in range(12)]
    found = [chances(plain + own.mask_of(client)) for own in rounds for client in (0, 7, 19)]
    assert kstest(np.concatenate(found), "uniform").pvalue > 0.01
    assert max(chances(plain)) < 1e-6
    # And of the sum of all that came, while masks of those who did not are still in it.
    sums = [sum(plain + own.mask_of(client) for client in range(2, 20)).astype(np.uint32) for own in rounds]
    assert kstest(np.concatenate([chances(total) for total in sums]), "uniform").pvalue > 0.01
    # Alike updates look nothing alike, and a client has other masks in another round.
    other = plain + masking.mask_of(4)
    later = plain + replace(masking, round=4).mask_of(3)
    assert abs(np.corrcoef(seen / 2**32, other / 2**32)[0, 1]) < 0.03
    assert abs(np.corrcoef(seen / 2**32, later / 2**32)[0, 1]) < 0.03


def test_entries_beyond_what_31_bits_hold_are_cut_and_no_sum_wraps_around():
    state, parts = twenty_clients()
    clients = range(4)
    masking = masking_of(state, clients, bits=24)
    assert 127.9 < masking.limit < 128
    loud = replace(parts[3][0], head={"weight": torch.full((5, 30), 1e6)})
    sent = parts[3][1]
    after = summed(FactorMean(mode="dimension"), state, masking, [(loud, sent, 1.0)] * 4, clients)
    moved = after.adapter.head["weight"] - state.adapter.head["weight"]
    assert float(moved.min()) == pytest.approx(masking.limit, rel=1e-5)
    assert float(moved.max()) == pytest.approx(masking.limit, rel=1e-5)


def test_with_too_few_the_sum_stays_masked_and_the_state_what_it_was():
    state, parts = twenty_clients()
    masking = masking_of(state, range(20), needed=10)
    assert summed(MEANS[0], state, masking, parts, range(9)) is state
    assert summed(MEANS[0], state, masking, parts, range(10)).version == 1


def test_a_client_that_agreed_on_nothing_or_sends_twice_or_too_little_is_refused():
    state, parts = twenty_clients()
    masking = masking_of(state, range(3))
    total = SecureSum(rule=MEANS[0], masking=masking).start(state)
    coded = masked(masking, 0, parts[0][0], 1.0)
    total.add(as_masked(0, coded), parts[0][1], 1.0)
    short = {MASKED: coded[MASKED][1:]}
    for client, message in ((0, coded), (7, coded), (1, short)):
        with pytest.raises(TrainingError, match=f"Client {client} sent .* once from each; not added"):
            total.add(as_masked(client, message), parts[0][1], 1.0)
    louder = replace(parts[1][1], factors={"q": replace(parts[1][1].factors["q"], scale=4.0)})
    with pytest.raises(TrainingError, match="summed at the global scale, and client 1 has another at 'q'"):
        total.add(as_masked(1, coded), louder, 1.0)


REFUSED = {
    "fedit": "averages states",
    "rbla": "averages states",
    "hetlora": "weighs updates by their norms",
    "flexlora": "is no mean of factors",
    "flora": "is no mean of factors",
    "fedex_lora": "is no mean of factors",
    "median": "is no mean of factors",
    "krum": "is no mean of factors",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_needs_single_updates_is_refused(name):
    with pytest.raises(
        ConfigError, match=f"a sum and no single update, and aggregation '{name}' {REFUSED[name]}"
    ):
        secure_sum(make_aggregation(name))


def test_cutting_by_the_server_is_refused_and_every_plain_mean_goes():
    with pytest.raises(ConfigError, match=r"cuts updates by aggregation\.clip_norm"):
        secure_sum(make_aggregation("factor_mean", {"clip_norm": 1.0}))
    goes = {n for n in PRESETS if n not in REFUSED and isinstance(make_aggregation(n), FactorMean)}
    assert goes == {"factor_mean", "coverage_mean", "ffa_lora"}
    for name in goes:
        rule = secure_sum(make_aggregation(name))
        assert (rule.name, rule.breaks) == (name, make_aggregation(name).breaks)


def test_a_configuration_asks_for_it_and_a_servers_optimizer_steps_on_the_sum():
    tree = {"secure_aggregation": {"masks": "pairwise"}, "aggregation": "coverage_mean"}
    assert isinstance(choose_rule(load_config(tree), None).rule, SecureSum)
    state, parts = twenty_clients()
    masking = masking_of(state, range(20), [weight for _, _, weight in parts])
    plain = make_aggregation("coverage_mean")
    momentum = ServerMomentum(learning_rate=0.5)
    hidden = with_masking(ServerStepped(rule=secure_sum(plain), optimizer=momentum), masking)
    total = hidden.start(state)
    for client, (delta, sent, weight) in enumerate(parts):
        total.add(as_masked(client, masked(masking, client, delta, weight)), sent, weight)
    ours = total.finish().adapter.tensors()
    theirs = aggregated(ServerStepped(rule=plain, optimizer=momentum), state, parts).adapter.tensors()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
