"""Server optimizers: torch's own, the papers' formulas in numpy, by hand, and what rests untrained."""

import numpy as np
import pytest
import torch

from fedray import checkpoint
from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.chosen import choose_rule
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.config import load_config
from fedray.config.aggregation_sections import ServerAdagrad, ServerAdam, ServerMomentum, ServerYogi
from fedray.engine import play_round
from fedray.errors import ConfigError
from tiny_run import assert_same_adapter, merged, opened, played

SITE = "linear"
OPTIMIZERS = {
    "momentum": ServerMomentum(learning_rate=0.7, beta1=0.8),
    "adagrad": ServerAdagrad(learning_rate=0.3, beta1=0.0, tau=0.05),
    "adam": ServerAdam(learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.05),
    "yogi": ServerYogi(learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.05),
}


def state_of(rank: int = 3) -> GlobalState:
    draw = torch.Generator().manual_seed(0)
    f = Factors(
        a=torch.randn(rank, 5, dtype=torch.float64, generator=draw),
        b=torch.randn(4, rank, dtype=torch.float64, generator=draw),
        scale=2.0,
    )
    head = {"weight": torch.randn(2, 4, dtype=torch.float64, generator=draw)}
    return GlobalState(adapter=Adapter(factors={SITE: f}, head=head))


def rule_with(optimizer, name="factor_mean"):
    return ServerStepped(rule=make_aggregation(name), optimizer=optimizer)


def after(rule, state, seed, rank=3, size=1.0):
    """A round of one client, which moves everything it holds."""
    draw, sent = torch.Generator().manual_seed(seed), rule.send(state, {SITE: rank} if rank else {}, seed=0)

    def moved(tensor):
        return size * torch.randn(tensor.shape, dtype=tensor.dtype, generator=draw)

    factors = {s: Factors(a=moved(f.a), b=moved(f.b), scale=f.scale) for s, f in sent.factors.items()}
    delta = Adapter(factors=factors, head={name: moved(t) for name, t in sent.head.items()})
    accumulator = rule.start(state)
    accumulator.add(delta, sent, 1.0)
    return delta, accumulator.finish()


@pytest.mark.parametrize("name", ["momentum", "adagrad"])
def test_momentum_and_adagrad_are_torchs_own_on_the_rounds_change_as_a_gradient(name):
    optimizer, state = OPTIMIZERS[name], state_of()
    rule = rule_with(optimizer)
    params = {key: tensor.clone() for key, tensor in state.adapter.tensors().items()}
    theirs: torch.optim.Optimizer = torch.optim.SGD(params.values(), lr=0.7, momentum=0.8)
    if name == "adagrad":
        theirs = torch.optim.Adagrad(params.values(), lr=0.3, initial_accumulator_value=0.05**2, eps=0.05)
    for number in range(4):
        delta, state = after(rule, state, number)
        for key, tensor in delta.tensors().items():
            params[key].grad = -tensor
        theirs.step()
        for key, tensor in state.adapter.tensors().items():
            torch.testing.assert_close(tensor, params[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adam_and_yogi_are_the_papers_formulas(name):
    # 2003.00295, with v from tau^2 and without correction for the moments' start.
    state, rule = state_of(), rule_with(OPTIMIZERS[name])
    x = {key: tensor.numpy().copy() for key, tensor in state.adapter.tensors().items()}
    m, v = (
        {key: np.zeros_like(own) for key, own in x.items()},
        {key: np.full_like(own, 0.0025) for key, own in x.items()},
    )
    for number in range(4):
        delta, state = after(rule, state, number, size=(1.0, 0.01, 0.3, 2.0)[number])
        for key, tensor in delta.tensors().items():
            d = tensor.numpy()
            m[key] = 0.8 * m[key] + 0.2 * d
            if name == "adam":
                v[key] = 0.9 * v[key] + 0.1 * d**2
            else:
                v[key] = v[key] - 0.1 * d**2 * np.sign(v[key] - d**2)
            x[key] = x[key] + 0.3 * m[key] / (np.sqrt(v[key]) + 0.05)
            np.testing.assert_allclose(state.adapter.tensors()[key], x[key], rtol=1e-9)


def test_two_steps_by_hand():
    state = GlobalState(adapter=Adapter(head={"bias": torch.zeros(1)}))
    found = {}
    for name, optimizer in {
        "momentum": ServerMomentum(learning_rate=0.5, beta1=0.5),
        "adagrad": ServerAdagrad(learning_rate=1.0, tau=3.0),
        "adam": ServerAdam(learning_rate=1.0, beta1=0.5, beta2=0.5, tau=3.0),
        "yogi": ServerYogi(learning_rate=1.0, beta1=0.5, beta2=0.5, tau=3.0),
    }.items():
        rule, own, steps = rule_with(optimizer), state, []
        for _ in range(2):
            accumulator = rule.start(own)
            accumulator.add(Adapter(head={"bias": torch.full((1,), 4.0)}), own.adapter, 1.0)
            before, own = own, accumulator.finish()
            steps.append(float(own.adapter.head["bias"] - before.adapter.head["bias"]))
        found[name] = steps
    # m is 4, then 6: half of each.
    assert found["momentum"] == [2.0, 3.0]
    # v is 9 + 16, then 41: 4 / (5 + 3), and 4 / (6.403 + 3).
    assert found["adagrad"] == pytest.approx([0.5, 4 / (41**0.5 + 3)])
    # m is 2, then 3; v is (9 + 16) / 2, then (12.5 + 16) / 2.
    assert found["adam"] == pytest.approx([2 / (12.5**0.5 + 3), 3 / (14.25**0.5 + 3)])
    # 9 < 16, so v grows by 8; 17 > 16, so it falls by 8.
    assert found["yogi"] == pytest.approx([2 / (17**0.5 + 3), 3 / (9**0.5 + 3)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_round_leaves_untrained_rests_with_its_moments(name):
    rule = rule_with(OPTIMIZERS[name])
    _, first = after(rule, state_of(), 1)
    _, second = after(rule, first, 2, rank=1)
    old, new = first.adapter.factors[SITE], second.adapter.factors[SITE]
    assert torch.equal(new.a[1:], old.a[1:])
    assert torch.equal(new.b[:, 1:], old.b[:, 1:])
    assert not torch.equal(new.a[0], old.a[0])
    for kind in {place.partition("/")[0] for place in first.moments}:
        before, now = first.moments[f"{kind}/{SITE}.lora_A"], second.moments[f"{kind}/{SITE}.lora_A"]
        assert torch.equal(now[1:], before[1:])
        assert not torch.equal(now[0], before[0])
    _, untrained = after(rule, second, 3, size=0.0)
    assert_same_adapter(untrained.adapter, second.adapter)
    assert untrained.moments.keys() == second.moments.keys()
    assert all(torch.equal(moment, second.moments[place]) for place, moment in untrained.moments.items())
    _, elsewhere = after(rule, second, 4, rank=0)
    assert torch.equal(elsewhere.adapter.factors[SITE].b, new.b)


def test_nothing_added_gives_the_state_itself():
    state = state_of()
    assert rule_with(OPTIMIZERS["adam"]).start(state).finish() is state


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("flexlora", "'flexlora' gives rank indices another meaning every round; drop it"),
        ("flora", "'flora' gives rank indices another meaning every round; drop it"),
        ("fedex_lora", "'fedex_lora' keeps beside the base what belongs to its own step of them"),
    ],
)
def test_a_rule_that_moments_cannot_follow_is_refused(rule, sentence):
    config = load_config({"aggregation": {"name": rule, "server_optimizer": "momentum"}})
    with pytest.raises(ConfigError, match=rf"aggregation\.server_optimizer: momentum .*{sentence}"):
        choose_rule(config, None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("adam", r"aggregation\.server_optimizer\.learning_rate is missing"),
        (
            {"name": "momentum", "tau": 0.9},
            r"server_optimizer has no key 'tau'; it has name, learning_rate, beta1\.",
        ),
        (
            {"name": "yogi", "learning_rate": 0.1, "tau": 0.0},
            r"server_optimizer\.tau must be above 0, found 0\.0",
        ),
        (
            {"name": "adamw"},
            "name must be one of none, momentum, adagrad, adam, yogi, found the text 'adamw'",
        ),
    ],
)
def test_an_optimizer_without_its_rate_or_with_anothers_key_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config({"aggregation": {"server_optimizer": given}})


def test_none_is_the_rule_itself_and_stands_in_the_resolved_configuration():
    plain, none = ({"aggregation": a} for a in ("fedit", {"name": "fedit", "server_optimizer": "none"}))
    assert choose_rule(load_config(plain), None) == choose_rule(load_config(none), None)
    assert choose_rule(load_config(plain), None).rule == make_aggregation("fedit")


def test_a_run_with_moments_goes_on_from_its_checkpoint_to_the_bit(tiny, tmp_path):
    chosen = {"name": "ffa_lora", "server_optimizer": {"name": "yogi", "learning_rate": 0.05}}
    config = merged(tiny, {"aggregation": chosen, "rounds": {"num_rounds": 2, "clients_per_round": 3}})
    unbroken = played(config)
    scene, progress, runtime = opened(config)
    try:
        play_round(scene, progress, runtime, 1)
        # A stays as drawn, B and the head have two moments each.
        assert len(progress.state.moments) == 2 * len(progress.state.adapter.tensors())
        checkpoint.save(tmp_path, progress)
        progress = checkpoint.load(tmp_path)
        play_round(scene, progress, runtime, 2)
    finally:
        runtime.close()
    assert_same_adapter(progress.state.adapter, unbroken.state.adapter)
    assert all(torch.equal(m, unbroken.state.moments[place]) for place, m in progress.state.moments.items())
