"""The laws of `fedray.aggregation.rule`, tried on one case; and what every rule must do beside them."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.rule import Aggregation
from fedray.testing.law_cases import (
    Contribution,
    LawCase,
    aggregated,
    contributions,
    rewritten,
    started_state,
)

Tensors = Mapping[str, Tensor]


class Trial:
    """One case under one rule, worked out once for all laws."""

    def __init__(self, rule: Aggregation, case: LawCase) -> None:
        """Args: ``rule`` as it is, ``case`` as drawn."""
        self.rule, self.case = rule, case

    @cached_property
    def state(self) -> GlobalState:
        """Before the round."""
        return started_state(self.rule, self.case)

    @cached_property
    def parts(self) -> list[Contribution]:
        """Of the round's clients."""
        return contributions(self.rule, self.state, self.case)

    @cached_property
    def after(self) -> GlobalState:
        """The state after the round."""
        return aggregated(self.rule, self.state, self.parts)


def broken_laws(trial: Trial) -> frozenset[str]:
    """The names of the laws that a case shows broken, of those in `CHECKS`."""
    return frozenset(law for law, holds in CHECKS.items() if not holds(trial))


def untrained_changes_nothing(trial: Trial) -> bool:
    """L1, in products and in the head."""
    state = trial.state
    new = aggregated(trial.rule, state, contributions(trial.rule, state, trial.case, size=0.0))
    return _close(products(state), products(new)) and _close(state.adapter.head, new.adapter.head)


def unheld_keeps_its_bits(trial: Trial) -> bool:
    """L2, by rank index where the rule keeps those, else by site."""
    kept, state, new = True, trial.state, trial.after
    for site, old in state.adapter.factors.items():
        held = max(client.ranks.get(site, 0) for client in trial.case.clients)
        first = held if trial.rule.keeps_rank_indices or not held else old.rank
        now = new.adapter.factors[site]
        kept &= _same_bits(old.a[first:], now.a[first:]) and _same_bits(old.b[:, first:], now.b[:, first:])
        if not held and site in state.base_delta:
            before, after = state.base_delta[site], new.base_delta[site]
            kept &= _same_bits(before.a, after.a) and _same_bits(before.b, after.b)
    return kept


def equal_assignments_are_fedavg(trial: Trial) -> bool:
    """L3: the weighted mean of what clients ended with, in factors or in products, and in the head."""
    equal = Trial(trial.rule, trial.case.with_equal_clients())
    if not _mean_head(equal):
        return False
    before, after = products(equal.state), products(equal.after)
    if _close(after, {site: before[site] + mean_change(equal.parts, site) for site in after}):
        return True
    total = sum(weight for _, _, weight in equal.parts)
    flat = [(delta.tensors(), sent.tensors(), weight / total) for delta, sent, weight in equal.parts]
    mean = {name: sum((w * (s[name] + d[name]) for d, s, w in flat), torch.zeros(())) for name in flat[0][0]}
    return _close(mean, equal.after.adapter.tensors())


def order_changes_nothing(trial: Trial) -> bool:
    """L4, to rounding."""
    other = aggregated(trial.rule, trial.state, trial.parts[::-1])
    return _close(products(trial.after), products(other)) and _close(
        trial.after.adapter.head, other.adapter.head
    )


def rewriting_changes_nothing(trial: Trial) -> bool:
    """L5: the first client's products under other factors."""
    first, *rest = trial.parts
    other = rewritten(trial.rule, trial.case, trial.state, first)
    return _close(products(trial.after), products(aggregated(trial.rule, trial.state, [other, *rest])))


def moves_by_the_mean_change(trial: Trial) -> bool:
    """L6."""
    before, after = products(trial.state), products(trial.after)
    return _close(after, {site: before[site] + mean_change(trial.parts, site) for site in before})


CHECKS: Mapping[str, Callable[[Trial], bool]] = {
    "L1": untrained_changes_nothing,
    "L2": unheld_keeps_its_bits,
    "L3": equal_assignments_are_fedavg,
    "L4": order_changes_nothing,
    "L5": rewriting_changes_nothing,
    "L6": moves_by_the_mean_change,
}


def mistake(trial: Trial) -> str | None:
    """What a rule does that no rule may, in a few words; None if there is nothing."""
    rule, state = trial.rule, trial.state
    before = {name: tensor.clone() for name, tensor in _everything(state).items()}
    after = trial.after
    checks = (
        (rule.start(state).finish() is state, "with nothing added, finish returns another state than it had"),
        (
            after.version == state.version + 1,
            f"a round takes version {state.version} to {after.version}, not one further",
        ),
        (_all_same_bits(before, _everything(state)), "a round writes into the state that it started from"),
        (
            _all_same_bits(_everything(after), _everything(Trial(rule, trial.case).after)),
            "the same calls give other bits the second time",
        ),
        (
            _same_shapes(state, after),
            "a site or a tensor of the head has gone, or has another shape or dtype",
        ),
    )
    return next((sentence for right, sentence in checks if not right), None)


def dense(factors: Factors) -> Tensor:
    """The product, [O, I]."""
    return factors.scale * (factors.b @ factors.a)


def products(state: GlobalState) -> dict[str, Tensor]:
    """Of each site, with what lies beside the base."""
    whole = {site: dense(f) for site, f in state.adapter.factors.items()}
    return {s: w + dense(state.base_delta[s]) if s in state.base_delta else w for s, w in whole.items()}


def mean_change(parts: list[Contribution], site: str) -> Tensor:
    """The clients' mean change of a site's product, over its holders; zero if there are none."""
    held = [(d.factors[site], s.factors[site], w) for d, s, w in parts if site in s.factors]
    total = sum(w for _, _, w in held)
    changes = [w / total * s.scale * ((s.b + d.b) @ (s.a + d.a) - s.b @ s.a) for d, s, w in held]
    return torch.stack(changes).sum(0) if changes else torch.zeros((), dtype=torch.float64)


def _mean_head(trial: Trial) -> bool:
    total = sum(weight for _, _, weight in trial.parts)
    wanted = dict(trial.state.adapter.head)
    for delta, _, weight in trial.parts:
        wanted = {name: tensor + weight / total * delta.head[name] for name, tensor in wanted.items()}
    return _close(wanted, trial.after.adapter.head)


def _everything(state: GlobalState) -> dict[str, Tensor]:
    base = Adapter(factors=state.base_delta).tensors()
    frozen = {f"{site}.frozen": a for site, a in state.adapter.frozen().items()}
    return state.adapter.tensors() | frozen | {f"base.{name}": tensor for name, tensor in base.items()}


def _same_shapes(old: GlobalState, new: GlobalState) -> bool:
    facts = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in state.adapter.tensors().items()}
        for state in (old, new)
    ]
    return facts[0] == facts[1]


def _close(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        torch.allclose(left[name].double(), right[name].double(), rtol=1e-9, atol=1e-9) for name in left
    )


def _same_bits(left: Tensor, right: Tensor) -> bool:
    alike = left.shape == right.shape and left.dtype == right.dtype
    return alike and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()


def _all_same_bits(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(_same_bits(left[name], right[name]) for name in left)
