"""Central and local differential privacy: what one client can do, what the noise is, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.chosen import choose_rule
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.presets import PRESETS, make_aggregation
from fedray.aggregation.private_sum import PrivateSum, private_sum
from fedray.aggregation.transforms import noised, norm_of
from fedray.config import load_config
from fedray.errors import ConfigError, TrainingError
from fedray.mechanism import Mechanism
from fedray.seeds import derive_seed
from fedray.testing.law_cases import aggregated, contributions, law_cases, started_state

MEAN = FactorMean(mode="zero_pad")


def mechanism(clip_norm=1.0, noise_multiplier=0.0, where="central"):
    return Mechanism(where=where, clip_norm=clip_norm, noise_multiplier=noise_multiplier, delta=1e-5)


def rule(clip_norm=1.0, noise_multiplier=0.0, num_clients=2, seed=3, mean=MEAN):
    return PrivateSum(
        rule=mean, mechanism=mechanism(clip_norm, noise_multiplier), num_clients=num_clients, seed=seed
    )


def alike(case):
    """The same round with everybody's weight 1."""
    return replace(case, clients=tuple(replace(client, weight=1.0) for client in case.clients))


def everything(state):
    return state.adapter.tensors()


def distance(one, other):
    left, right = everything(one), everything(other)
    return norm_of({name: left[name] - right[name] for name in left})


# By hand: one site of rank 2, and a bias.
STATE = GlobalState(
    adapter=Adapter(
        factors={"linear": Factors(a=torch.zeros(2, 2), b=torch.zeros(1, 2), scale=1.0)},
        head={"bias": torch.zeros(1)},
    )
)


def client(a, b, bias):
    """Its update, and what it was sent: a rank is a row of A and a column of B."""
    rank = len(a)
    factors = {"linear": Factors(a=torch.tensor(a), b=torch.tensor([b]), scale=1.0)}
    zero = {"linear": Factors(a=torch.zeros(rank, 2), b=torch.zeros(1, rank), scale=1.0)}
    sent = Adapter(factors=zero, head={"bias": torch.zeros(1)})
    return Adapter(factors=factors, head={"bias": torch.tensor([bias])}), sent


def test_updates_are_cut_padded_with_zeros_and_divided_by_the_number_that_was_asked():
    total = rule(clip_norm=6.5, num_clients=4).start(STATE)
    # Norm 13, so it is halved; the other one, of norm 6, passes, and has rank 2.
    total.add(*client([[3.0, 0.0]], [4.0], 12.0), 1.0)
    total.add(*client([[0.0, 0.0], [0.0, 4.0]], [2.0, 4.0], 0.0), 1.0)
    new = total.finish()
    assert new.adapter.factors["linear"].a.tolist() == [[1.5 / 4, 0.0], [0.0, 1.0]]
    assert new.adapter.factors["linear"].b.tolist() == [[(2.0 + 2.0) / 4, 1.0]]
    assert new.adapter.head["bias"].tolist() == [1.5]
    assert new.version == 1


def test_a_part_of_a_tensor_is_added_where_it_lies():
    whole = GlobalState(adapter=Adapter(weights={"w": torch.zeros(2, 3)}))
    place = {"w": (torch.tensor([1]), torch.tensor([0, 2]))}
    sent = Adapter(weights={"w": torch.zeros(1, 2)}, places=place)
    total = rule(clip_norm=10.0).start(whole)
    total.add(Adapter(weights={"w": torch.tensor([[2.0, 4.0]])}, places=place), sent, 1.0)
    assert total.finish().adapter.weights["w"].tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=law_cases(), clip_norm=st.floats(0.01, 30.0))
def test_one_client_more_moves_the_sum_by_the_norm_at_most_and_another_one_by_twice_that(case, clip_norm):
    case = alike(case)
    private = rule(clip_norm=clip_norm, num_clients=len(case.clients))
    state = started_state(MEAN, case)
    parts = contributions(private, state, case)
    bound = clip_norm / len(case.clients) * (1 + 1e-9)
    whole = aggregated(private, state, parts)
    assert distance(whole, aggregated(private, state, parts[1:])) <= bound
    # In its place somebody who does the opposite, and as much of it as one likes.
    delta, sent, _ = parts[0]
    opposite = Adapter(
        factors={s: replace(f, a=-50 * f.a, b=-50 * f.b) for s, f in delta.factors.items()},
        head={name: -50 * tensor for name, tensor in delta.head.items()},
    )
    assert distance(whole, aggregated(private, state, [(opposite, sent, 1.0), *parts[1:]])) <= 2 * bound


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=law_cases())
def test_without_noise_and_with_a_norm_that_nobody_reaches_it_is_the_rules_own_mean_to_the_bit(case):
    case = alike(case)
    for mean in (MEAN, FactorMean(mode="frozen_a")):
        full = case if mean is MEAN else case.with_equal_clients()
        state = started_state(mean, full)
        parts = contributions(mean, state, full)
        private = rule(clip_norm=1e9, num_clients=len(parts), mean=mean)
        ours, theirs = (
            everything(aggregated(private, state, parts)),
            everything(aggregated(mean, state, parts)),
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


LARGE = GlobalState(
    adapter=Adapter(
        factors={"linear": Factors(a=torch.zeros(8, 300), b=torch.zeros(200, 8), scale=1.0)},
        head={"bias": torch.zeros(500)},
    )
)


def test_noise_is_gaussian_of_the_stated_size_on_every_entry_held_or_not():
    new = rule(clip_norm=2.0, noise_multiplier=1.5, num_clients=6).start(LARGE).finish()
    drawn = torch.cat([tensor.flatten() for tensor in everything(new).values()]).double()
    assert len(drawn) == 8 * 300 + 200 * 8 + 500
    assert kstest((drawn * 6 / 3.0).numpy(), "norm").pvalue > 0.01
    assert new.version == 1


def test_noise_is_of_the_run_the_round_and_the_tensor_alone():
    def noise(seed=3, version=0):
        state = replace(LARGE, version=version)
        return everything(rule(noise_multiplier=1.0, seed=seed).start(state).finish())

    first = noise()
    assert all(torch.equal(first[name], again) for name, again in noise().items())
    for other in (noise(seed=4), noise(version=1)):
        assert not any(torch.equal(first[name], tensor) for name, tensor in other.items())
    assert not torch.equal(first["head.bias"], first["linear.lora_A"].flatten()[:500])


def test_a_local_update_is_cut_and_noised_and_without_noise_within_the_norm_it_is_the_same_object():
    delta, _ = client([[3.0, 0.0]], [4.0], 12.0)
    assert noised(delta, mechanism(13.0), lambda name: 0) is delta
    halved = noised(delta, mechanism(6.5), lambda name: 0)
    assert halved.head["bias"].tolist() == [6.0]
    loud = noised(LARGE.adapter, mechanism(2.0, 1.5), lambda name: derive_seed(0, name))
    drawn = torch.cat([tensor.flatten() for tensor in loud.tensors().values()]).double()
    assert kstest((drawn / 3.0).numpy(), "norm").pvalue > 0.01
    assert loud.head["bias"].dtype == torch.float32


def test_an_a_that_nobody_trains_is_neither_cut_nor_noised():
    frozen = replace(LARGE.adapter.factors["linear"], train_a=False)
    loud = noised(Adapter(factors={"linear": frozen}), mechanism(1.0, 1.0), lambda name: 0)
    assert not loud.factors["linear"].a.any()
    assert loud.factors["linear"].b.std() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "name", sorted(name for name in PRESETS if name not in ("ffa_lora",) and name != "factor_mean")
)
def test_a_rule_whose_sensitivity_is_not_known_is_refused(name):
    with pytest.raises(
        ConfigError, match=f"of aggregation '{name}' .* that is not known; choose aggregation"
    ):
        private_sum(make_aggregation(name), mechanism(), 4, 0)


def test_other_weights_and_other_scales_are_refused_and_nothing_is_added():
    total = rule().start(STATE)
    delta, sent = client([[1.0, 0.0]], [1.0], 0.0)
    with pytest.raises(TrainingError, match="every update weighs 1, and one weighs 7"):
        total.add(delta, sent, 7.0)
    louder = [
        Adapter(factors={"linear": replace(x.factors["linear"], scale=4.0)}, head=x.head)
        for x in (delta, sent)
    ]
    with pytest.raises(TrainingError, match="all have the global scale, and one has another at 'linear'"):
        total.add(*louder, 1.0)
    assert not any(tensor.any() for tensor in everything(total.finish()).values())


def test_a_rule_under_privacy_is_asked_for_by_a_configuration_with_uniform_weights():
    private = mechanism()
    zero_pad = {"name": "factor_mean", "options": {"mode": "zero_pad"}}
    tree = {"aggregation": {**zero_pad, "weights": "uniform"}, "rounds": {"clients_per_round": 6}, "seed": 9}
    chosen = choose_rule(load_config(tree), None, private).rule
    assert chosen == PrivateSum(rule=FactorMean(mode="zero_pad"), mechanism=private, num_clients=6, seed=9)
    with pytest.raises(
        ConfigError, match=r"updates weigh their clients' rows.*aggregation\.weights: uniform"
    ):
        choose_rule(load_config({"aggregation": zero_pad}), None, private)
    stepped = {**tree["aggregation"], "server_optimizer": {"name": "momentum"}}
    assert choose_rule(load_config({**tree, "aggregation": stepped}), None, private).rule.breaks >= {"L3"}


def test_what_it_breaks_is_said():
    assert rule().breaks == {"L3", "L5", "L6"}
    assert rule(noise_multiplier=1.0).breaks == {"L1", "L2", "L3", "L5", "L6"}
    assert not math.isinf(rule().mechanism.noise_deviation)
