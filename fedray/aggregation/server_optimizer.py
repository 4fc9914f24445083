"""A server's optimizer after any rule: a round's change is its gradient, and moments live over rounds.

FedAvgM (1909.06335); FedAdagrad, FedAdam and FedYogi (2003.00295).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from fedray.adapter import WEIGHTS, Adapter, Factors, GlobalState
from fedray.aggregation.rule import Accumulator, Aggregation
from fedray.config.aggregation_sections import (
    ServerAdagrad,
    ServerAdam,
    ServerMomentum,
    ServerOptimizer,
    ServerYogi,
)
from fedray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStepped(Aggregation):
    """A rule whose result is not taken as it is: the server steps towards it.

    With D the change that the rule makes of a round, m and v the moments, x the state, all by entry:

    * momentum: ``m <- beta1 m + D``, ``x <- x + learning_rate m``;
    * the others: ``m <- beta1 m + (1 - beta1) D``, ``x <- x + learning_rate m / (sqrt(v) + tau)`` where
      adagrad has ``v <- v + D^2``, adam ``v <- beta2 v + (1 - beta2) D^2`` and yogi
      ``v <- v - (1 - beta2) D^2 sign(v - D^2)``.

    m starts at 0 and v at tau^2, and neither is corrected for its start, as in the paper's algorithm. What a
    round left as it was (a rank index at a site, a tensor of the head) rests with its moments: where few
    clients hold much, momentum would else go on moving what nobody trains (L1, L2).

    Raises:
        ConfigError: at construction, for a rule whose factors moments cannot follow.
    """

    rule: Aggregation
    optimizer: ServerOptimizer

    def __post_init__(self) -> None:
        if not self.rule.keeps_rank_indices:
            raise ConfigError(
                f"aggregation.server_optimizer: {self.optimizer.name} keeps moments of every rank index, and "
                f"{self.rule.name!r} gives rank indices another meaning every round; drop it, or choose a "
                "factor mean."
            )
        if self.rule.moves_base:
            raise ConfigError(
                f"aggregation.server_optimizer: {self.optimizer.name} steps the factors, and "
                f"{self.rule.name!r} keeps beside the base what belongs to its own step of them; drop it, or "
                "choose a factor mean."
            )

    @property
    def name(self) -> str:
        """The rule's."""
        return self.rule.name

    @property
    def breaks(self) -> frozenset[str]:
        """What the rule breaks; and L3 and L6, for the next state is not the mean."""
        return self.rule.breaks | {"L3", "L6"}

    @property
    def averages_states(self) -> bool:
        """The rule's."""
        return self.rule.averages_states

    @property
    def freezes_a(self) -> bool:
        """The rule's."""
        return self.rule.freezes_a

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """As the rule does."""
        return self.rule.send(state, ranks, seed)

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""
        return _SteppedSum(self.rule.start(state), state, self.optimizer)


class _SteppedSum:
    """The rule's sum, and a step in the end."""

    def __init__(self, total: Accumulator, state: GlobalState, optimizer: ServerOptimizer) -> None:
        self._sum, self._state, self._optimizer = total, state, optimizer

    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        self._sum.add(update, sent, weight)

    @torch.no_grad()
    def finish(self) -> GlobalState:
        old, new = self._state, self._sum.finish()
        if new is old:
            return old
        step = _Step(self._optimizer, new.moments)
        was, now = old.adapter, new.adapter
        factors = {site: step.of_site(site, f, now.factors[site]) for site, f in was.factors.items()}
        head = {
            name: step.of(f"head.{name}", tensor, now.head[name], (now.head[name] != tensor).any())
            for name, tensor in was.head.items()
        }
        weights = {
            name: step.of(f"{WEIGHTS}{name}", tensor, now.weights[name], now.weights[name] != tensor)
            for name, tensor in was.weights.items()
        }
        stepped = Adapter(factors=factors, head=head, weights=weights)
        return replace(new, adapter=stepped, moments=step.moments)


class _Step:
    """One step of the whole state; ``moments`` are then the next round's."""

    def __init__(self, optimizer: ServerOptimizer, moments: Mapping[str, Tensor]) -> None:
        self._optimizer = optimizer
        self.moments = dict(moments)

    def of_site(self, site: str, old: Factors, new: Factors) -> Factors:
        moved = (new.a != old.a).any(dim=1) | (new.b != old.b).any(dim=0)  # [R]
        a = self.of(f"{site}.lora_A", old.a, new.a, moved[:, None]) if old.train_a else old.a
        return replace(old, a=a, b=self.of(f"{site}.lora_B", old.b, new.b, moved))

    def of(self, name: str, old: Tensor, new: Tensor, moved: Tensor) -> Tensor:
        """A tensor after its step; ``moved``, which broadcasts to it, says what does not rest."""
        if not bool(moved.any()):
            return old
        before = {kind: self._moment(kind, name, old) for kind in _kinds(self._optimizer)}
        step, after = _stepped(self._optimizer, new.double() - old.double(), before)
        for kind, moment in after.items():
            self.moments[f"{kind}/{name}"] = torch.where(moved, moment, before[kind])
        return torch.where(moved, (old.double() + step).to(old.dtype), old)

    def _moment(self, kind: str, name: str, like: Tensor) -> Tensor:
        place = f"{kind}/{name}"
        if place in self.moments:
            return self.moments[place]
        return torch.full_like(like, _kinds(self._optimizer)[kind], dtype=torch.float64)


def _kinds(optimizer: ServerOptimizer) -> dict[str, float]:
    """The moments that an optimizer keeps, and what each starts from."""
    match optimizer:
        case ServerMomentum():
            return {"first": 0.0}
        case ServerAdagrad(tau=tau) | ServerAdam(tau=tau) | ServerYogi(tau=tau):
            return {"first": 0.0, "second": tau**2}
        case _:
            assert_never(optimizer)


def _stepped(
    optimizer: ServerOptimizer, change: Tensor, before: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The step, and the moments after it."""
    square = change.square()
    match optimizer:
        case ServerMomentum():
            first = optimizer.beta1 * before["first"] + change
            return optimizer.learning_rate * first, {"first": first}
        case ServerAdagrad():
            second = before["second"] + square
        case ServerAdam():
            second = optimizer.beta2 * before["second"] + (1 - optimizer.beta2) * square
        case ServerYogi():
            further = torch.sign(before["second"] - square)
            second = before["second"] - (1 - optimizer.beta2) * square * further
        case _:
            assert_never(optimizer)
    first = optimizer.beta1 * before["first"] + (1 - optimizer.beta1) * change
    step = optimizer.learning_rate * first / (second.sqrt() + optimizer.tau)
    return step, {"first": first, "second": second}
