"""What every rule refuses, whole and with a sentence; and what a sum holds while a round is under way."""

import gc
import math
from dataclasses import replace
from types import FunctionType, ModuleType

import pytest
import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.presets import make_aggregation
from fedray.aggregation.rule import Accumulator, Aggregation
from fedray.errors import TrainingError

NAMES = ["fedit", "hetlora", "rbla", "flexlora", "flexlora_delta", "raflora", "flora", "fedex_lora"]


def state_of(inputs: int = 9, outputs: int = 8, rank: int = 4) -> GlobalState:
    a = torch.randn(rank, inputs, generator=torch.Generator().manual_seed(0))
    f = Factors(a=a, b=torch.zeros(outputs, rank), scale=2.0)
    return GlobalState(adapter=Adapter(factors={"one": f, "two": f}, head={"bias": torch.zeros(3)}))


STATE = state_of()


def trained(sent: Adapter, seed: int = 1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        site: replace(
            f,
            a=torch.randn(f.a.shape, generator=generator) * f.train_a,
            b=torch.randn(f.b.shape, generator=generator),
        )
        for site, f in sent.factors.items()
    }
    return Adapter(
        factors=factors, head={n: torch.randn(t.shape, generator=generator) for n, t in sent.head.items()}
    )


def with_factors(adapter: Adapter, site: str, **changed: torch.Tensor | float) -> Adapter:
    return replace(adapter, factors={**adapter.factors, site: replace(adapter.factors[site], **changed)})


def poisoned(update: Adapter, value: float) -> Adapter:
    b = update.factors["two"].b.clone()
    b[0, 0] = value
    return with_factors(update, "two", b=b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused_and_nothing_of_it_is_added(name, value):
    rule = make_aggregation(name)
    sent = rule.send(STATE, {"one": 2, "two": 2}, seed=0)
    accumulator, clean = rule.start(STATE), rule.start(STATE)
    for sums in (accumulator, clean):
        sums.add(trained(sent), sent, 1.0)
    with pytest.raises(TrainingError, match=r"two\.lora_B of an update holds 1 values that are not finite"):
        accumulator.add(poisoned(trained(sent, seed=2), value), sent, 1.0)
    found, wanted = accumulator.finish(), clean.finish()
    for part in ("adapter", "base"):
        left, right = (
            s.adapter if part == "adapter" else Adapter(factors=s.base_delta) for s in (found, wanted)
        )
        assert all(torch.equal(t, right.tensors()[key]) for key, t in left.tensors().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda u: replace(u, factors={"one": u.factors["one"]}),
            r"only one side has two\.lora_A, two\.lora_B",
        ),
        (lambda u: replace(u, head={}), r"only one side has head\.bias"),
        (
            lambda u: with_factors(u, "one", a=torch.zeros(3, 9)),
            r"one\.lora_A was sent as \[2, 9\] and came back as",
        ),
        (
            lambda u: with_factors(u, "one", scale=1.0),
            r"'one' was sent with scale 2\.0 and came back with 1\.0",
        ),
    ],
)
def test_an_update_unlike_what_was_sent_is_refused(change, sentence):
    rule = FactorMean(mode="dimension")
    sent = rule.send(STATE, {"one": 2, "two": 1}, seed=0)
    accumulator = rule.start(STATE)
    with pytest.raises(TrainingError, match=sentence):
        accumulator.add(change(trained(sent)), sent, 1.0)
    assert accumulator.finish() is STATE


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: replace(s, factors={"three": s.factors["one"]}),
            "has three, which the global state does not",
        ),
        (
            lambda s: replace(s, head={"weight": torch.zeros(1)}),
            "has weight, which the global state does not",
        ),
        (
            lambda s: with_factors(s, "one", a=torch.zeros(2, 5)),
            r"A \[2, 5\] and B \[8, 2\], which does not fit",
        ),
        (
            lambda s: with_factors(s, "one", a=torch.zeros(1, 9)),
            r"A \[1, 9\] and B \[8, 2\], which does not fit",
        ),
        (
            lambda s: with_factors(s, "one", a=torch.zeros(5, 9), b=torch.zeros(8, 5)),
            r"A \[5, 9\] and B \[8, 5\], which does not fit the global A \[4, 9\]",
        ),
        (lambda s: with_factors(s, "one", scale=0.0), "scale at 'one' must be above 0, found 0.0"),
    ],
)
def test_what_does_not_fit_the_global_state_is_refused(change, sentence):
    rule = FactorMean(mode="dimension")
    sent = change(rule.send(STATE, {"one": 2, "two": 1}, seed=0))
    accumulator = rule.start(STATE)
    with pytest.raises(TrainingError, match=sentence):
        accumulator.add(trained(sent), sent, 1.0)
    assert accumulator.finish() is STATE


FROZEN = replace(
    STATE,
    adapter=replace(
        STATE.adapter, factors={s: replace(f, train_a=False) for s, f in STATE.adapter.factors.items()}
    ),
)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: with_factors(s, "two", train_a=True),
        lambda s: with_factors(s, "two", a=2.0 * s.factors["two"].a),
    ],
    ids=["trained", "another"],
)
def test_a_rule_over_one_shared_a_refuses_one_that_is_trained_or_another(change):
    rule = make_aggregation("ffa_lora")
    sent = change(rule.send(FROZEN, {"one": 2, "two": 1}, seed=0))
    accumulator = rule.start(FROZEN)
    with pytest.raises(TrainingError, match="a client has another A at 'two', or trains it; give it train_a"):
        accumulator.add(trained(sent), sent, 1.0)
    assert accumulator.finish() is FROZEN


@pytest.mark.parametrize("name", ["ffa_lora", "fedit", "hetlora", "rbla", "fedex_lora"])
def test_an_a_that_nobody_trains_keeps_its_bits_whatever_the_ranks(name):
    rule = make_aggregation(name)
    accumulator = rule.start(FROZEN)
    for seed, rank in enumerate((4, 2, 1)):
        sent = rule.send(FROZEN, {"one": rank}, seed=0)
        assert sent.tensors().keys() == {"one.lora_B", "head.bias"}
        accumulator.add(trained(sent, seed), sent, 1.0)
    new, old = (state.adapter.factors["one"] for state in (accumulator.finish(), FROZEN))
    assert torch.equal(new.a.view(torch.int32), old.a.view(torch.int32))
    assert not new.train_a
    assert not torch.equal(new.b, old.b)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_not_above_zero_is_refused(weight):
    rule = FactorMean(mode="dimension")
    sent = rule.send(STATE, {}, seed=0)
    with pytest.raises(TrainingError, match="weight must be a finite number above 0"):
        rule.start(STATE).add(trained(sent), sent, weight)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_and_sites_that_the_state_does_not_have_cannot_be_sent(name):
    rule = make_aggregation(name)
    with pytest.raises(
        TrainingError, match="Rank 5 was asked for at 'one', but the global adapter has ranks 1 to 4"
    ):
        rule.send(STATE, {"one": 5}, seed=0)
    with pytest.raises(TrainingError, match="leave the site out to freeze it"):
        rule.send(STATE, {"one": 0}, seed=0)
    with pytest.raises(
        TrainingError, match="Site 'three' was asked for, but the global adapter has one, two"
    ):
        rule.send(STATE, {"three": 1}, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_clients_that_train_the_head_alone_move_the_head_alone(name):
    rule = make_aggregation(name)
    sent = rule.send(STATE, {}, seed=0)
    accumulator = rule.start(STATE)
    accumulator.add(Adapter(head={"bias": torch.ones(3)}), sent, 2.0)
    accumulator.add(Adapter(head={"bias": torch.full((3,), 4.0)}), sent, 1.0)
    new = accumulator.finish()
    assert new.adapter.head["bias"].tolist() == [2.0, 2.0, 2.0]
    assert new.adapter.factors == STATE.adapter.factors


@pytest.mark.parametrize("name", NAMES)
def test_fp32_states_stay_fp32(name):
    rule = make_aggregation(name)
    sent = rule.send(STATE, {"one": 2}, seed=0)
    accumulator = rule.start(STATE)
    accumulator.add(trained(sent), sent, 1.0)
    new = accumulator.finish()
    every = [*new.adapter.tensors().values(), *Adapter(factors=new.base_delta).tensors().values()]
    assert {tensor.dtype for tensor in every} == {torch.float32}


def bytes_held(accumulator: Accumulator, beside: GlobalState) -> int:
    """Storage of every tensor that the accumulator reaches and the state it started from does not."""
    known = {t.untyped_storage().data_ptr() for t in beside.adapter.tensors().values()}
    found: dict[int, int] = {}
    seen, waiting = set(), [accumulator]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, FunctionType):
            waiting.extend(cell.cell_contents for cell in thing.__closure__ or ())
        else:
            waiting.extend(gc.get_referents(thing))
    return sum(size for pointer, size in found.items() if pointer not in known)


def bytes_after(rule: Aggregation, counts: tuple[int, ...]) -> list[int]:
    accumulator, found = rule.start(STATE), []
    for added in range(1, max(counts) + 1):
        sent = rule.send(STATE, {"one": 2, "two": 1 + added % 2}, seed=added)
        accumulator.add(trained(sent, seed=added), sent, 1.0)
        if added in counts:
            found.append(bytes_held(accumulator, STATE))
    return found


@pytest.mark.parametrize("name", ["fedit", "hetlora", "rbla"])
def test_a_factor_mean_holds_as_much_after_64_updates_as_after_the_first(name):
    first, fourth, last = bytes_after(make_aggregation(name), (1, 4, 64))
    # Two sites: A 4 x 9, B 8 x 4 and a weight a rank in float64, and the head's three numbers.
    assert first == fourth == last == 8 * (2 * (36 + 32 + 4) + 3)


@pytest.mark.parametrize("name", ["flexlora", "flexlora_delta", "flora"])
def test_stacked_ranks_stop_growing_at_the_narrower_side_of_a_linear(name):
    # 8 x 9 linears: past rank 8 a sum is 72 float64 numbers, however many updates came.
    middle, last = bytes_after(make_aggregation(name), (16, 64))
    assert middle == last == 8 * (2 * 72 + 3)  # two sites and the head's three numbers


def test_means_and_what_they_leave_out_stop_growing_together():
    # The same, and at each site the sums of A, 4 x 9, and of B, 8 x 4.
    middle, last = bytes_after(make_aggregation("fedex_lora"), (16, 64))
    assert middle == last == 8 * (2 * (72 + 36 + 32) + 3)
