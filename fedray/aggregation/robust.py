"""Means that a few attackers cannot move far, over updates of unlike shapes: an entry over who holds it.

The published rules compare vectors of one length. Here clients hold unlike parts, so what compares whole
updates (Krum, the geometric median) goes by the root mean square over the entries that are compared: else
whoever holds little would lie near everybody. Where all hold the same, these are the published rules.

All updates of a round are kept until it ends, at the size of the whole state when they are compared: the
server's memory grows with the clients of a round. All updates weigh alike, since rows are what a client says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import Adapter, GlobalState, from_tensors
from fedray.aggregation.padding import add_at
from fedray.aggregation.round_sum import StartRule, check_update, leading, send_sites
from fedray.aggregation.rule import Accumulator, Aggregation, Transform
from fedray.errors import ConfigError

RobustMode = Literal["median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound"]

_STEPS = 200  # of Weiszfeld's iteration at most
_STILL = 1e-12  # change of its weights at which it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust(Aggregation):
    """One rule of the literature; K updates came, of which f = floor(share K) may be attackers'.

    * ``median`` (1803.01498): of each entry over its holders; of an even number the mean of the middle two.
    * ``trimmed_mean`` (1803.01498): of each entry, without the floor(share n) largest and smallest of n.
    * ``krum`` (1703.02757): the one update whose K - f - 2 nearest others are nearest, of equals the shorter;
      entries that it does not hold stay. ``multi_krum``: the mean of the K - f best of these.
    * ``geometric_median`` (RFA, 1912.13445): the point with the least sum of distances, by Weiszfeld's steps.
    * ``norm_bound`` (1911.07963): the mean of updates cut to ``max_norm``, or to the round's median norm.

    Raises:
        ConfigError: at construction, for a share that is not from 0 to below 0.5, or an option of another
            mode.
    """

    mode: RobustMode
    share: float | None = None
    max_norm: float | None = None
    name: str = "median"
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        takes_share = self.mode in ("trimmed_mean", "krum", "multi_krum")
        if self.share is not None and not (takes_share and 0 <= self.share < 0.5):
            raise ConfigError(
                f"Option 'share' of aggregation {self.name!r} is "
                + (f"from 0 to below 0.5, found {self.share}." if takes_share else "not there; drop it.")
            )
        if self.max_norm is not None and not (self.mode == "norm_bound" and 0 < self.max_norm < math.inf):
            raise ConfigError(
                f"Option 'max_norm' of aggregation {self.name!r} is "
                + ("a finite number above 0." if self.mode == "norm_bound" else "not there; drop it.")
            )

    @property
    def breaks(self) -> frozenset[str]:
        """L3 and L6, being no weighted means; and L5, going by factors."""
        return frozenset({"L3", "L5", "L6"})

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; truncation, so ``seed`` changes nothing."""
        return send_sites(state, ranks, lambda site, rank: leading(state.adapter.factors[site], rank))

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`; what it holds grows with the updates."""
        return _Kept(self, state)


class _Kept:
    """A round's updates, until it ends."""

    def __init__(self, rule: Robust, state: GlobalState) -> None:
        self._rule, self._state = rule, state
        self._updates: list[tuple[Adapter, Adapter]] = []

    @torch.no_grad()
    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        check_update(update, sent, weight, self._state, StartRule())
        for transform in self._rule.transforms:
            update = transform(update, weight)
        self._updates.append((_at_global_scale(update, self._state), sent))

    @torch.no_grad()
    def finish(self) -> GlobalState:
        if not self._updates:
            return self._state
        old = self._state.adapter
        stacks = {name: _stacked(name, tensor, self._updates) for name, tensor in old.tensors().items()}
        changes = _combined(self._rule, list(stacks.values()))
        new = {}
        for (name, stack), change in zip(stacks.items(), changes, strict=True):
            tensor, held = old.tensors()[name], stack.held.any(dim=0)
            new[name] = torch.where(held, (tensor.double() + change).to(tensor.dtype), tensor)
        return replace(self._state, adapter=from_tensors(old, new), version=self._state.version + 1)


@dataclass(frozen=True, slots=True)
class Stack:
    """One tensor of all updates, [K, *shape]: zero where a client does not hold an entry."""

    changes: Tensor
    held: Tensor

    def mean(self, weights: Tensor) -> Tensor:
        """By these of the clients, [K], of each entry over its holders; 0 where nobody with a weight is."""
        each = weights.view(-1, *[1] * (self.changes.dim() - 1))
        total = (each * self.held).sum(dim=0)
        return (each * self.changes).sum(dim=0) / total.clamp(min=1e-300)


def _at_global_scale(update: Adapter, state: GlobalState) -> Adapter:
    """With another scale than the state's folded into the factors, half on each side, or into B alone."""
    factors = {}
    for site, f in update.factors.items():
        ratio = f.scale / state.adapter.factors[site].scale
        side = ratio**0.5 if f.train_a else ratio
        factors[site] = f if ratio == 1 else replace(f, a=f.a * side if f.train_a else f.a, b=f.b * side)
    return replace(update, factors=factors)


def _stacked(name: str, whole: Tensor, updates: Sequence[tuple[Adapter, Adapter]]) -> Stack:
    changes = torch.zeros(len(updates), *whole.shape, dtype=torch.float64)
    held = torch.zeros(len(updates), *whole.shape, dtype=torch.float64)
    for place, (update, sent) in enumerate(updates):
        own = update.tensors().get(name)
        if own is not None:
            add_at(changes[place], own.double(), name, sent)
            add_at(held[place], torch.ones_like(own, dtype=torch.float64), name, sent)
    return Stack(changes, held > 0)


def _combined(rule: Robust, stacks: list[Stack]) -> list[Tensor]:
    """The change of each tensor."""
    share = 0.2 if rule.share is None else rule.share
    match rule.mode:
        case "median":
            return [_middle(stack, lambda n: (n - 1) // 2) for stack in stacks]
        case "trimmed_mean":
            return [_middle(stack, lambda n: (share * n).floor().long()) for stack in stacks]
        case "krum" | "multi_krum":
            weights = _nearest(stacks, share, several=rule.mode == "multi_krum")
        case "geometric_median":
            weights = _geometric(stacks)
        case "norm_bound":
            weights = torch.ones(len(stacks[0].changes), dtype=torch.float64)
            stacks = _bounded(stacks, rule.max_norm)
        case _:
            assert_never(rule.mode)
    return [stack.mean(weights) for stack in stacks]


def _middle(stack: Stack, cut: Callable[[Tensor], Tensor]) -> Tensor:
    """Of each entry the mean of its holders' values without the ``cut(n)`` largest and smallest of n."""
    ordered = torch.where(stack.held, stack.changes, torch.inf).sort(dim=0).values
    count = stack.held.sum(dim=0)
    low = cut(count.clamp(min=1))
    place = torch.arange(len(ordered)).view(-1, *[1] * (ordered.dim() - 1))
    kept = (place >= low) & (place < count - low)
    total = torch.where(kept, ordered, 0.0).sum(dim=0)
    return total / kept.sum(dim=0).clamp(min=1)


def _nearest(stacks: Sequence[Stack], share: float, *, several: bool) -> Tensor:
    """Krum's choice as weights, [K]."""
    number = len(stacks[0].changes)
    attackers = int(share * number)
    apart = _mean_squares(stacks)
    apart.fill_diagonal_(torch.inf)
    neighbours = min(max(1, number - attackers - 2), number - 1)
    # A client that is alone is its own choice.
    scores = apart.sort(dim=1).values[:, :neighbours].sum(dim=1) if neighbours else torch.zeros(number)
    # Two that are nearest each other often have one score; then the shorter update is taken, in any order.
    norms = torch.stack([stack.changes.square().flatten(1).sum(dim=1) for stack in stacks]).sum(dim=0)
    best = np.lexsort((norms.numpy(), scores.numpy()))[: number - attackers if several else 1]
    weights = torch.zeros(number, dtype=torch.float64)
    weights[best] = 1.0
    return weights


def _mean_squares(stacks: Sequence[Stack]) -> Tensor:
    """Between every two updates the mean square over the entries that both hold, [K, K]; else infinity."""
    number = len(stacks[0].changes)
    squares, counts = (torch.zeros(number, number, dtype=torch.float64) for _ in range(2))
    for stack in stacks:
        changes, held = stack.changes.flatten(1), stack.held.flatten(1)
        for one in range(number):
            both = held & held[one]
            squares[one] += torch.where(both, changes - changes[one], 0.0).square().sum(dim=1)
            counts[one] += both.sum(dim=1)
    return torch.where(counts > 0, squares / counts.clamp(min=1), torch.inf)


def _geometric(stacks: Sequence[Stack]) -> Tensor:
    """The weights, [K], whose mean is the geometric median: one over each update's distance from it."""
    number = len(stacks[0].changes)
    weights = torch.full((number,), 1.0 / number, dtype=torch.float64)
    for _ in range(_STEPS):
        squares, counts = (torch.zeros(number, dtype=torch.float64) for _ in range(2))
        for stack in stacks:
            off = torch.where(stack.held, stack.changes - stack.mean(weights), 0.0)
            squares += off.square().flatten(1).sum(dim=1)
            counts += stack.held.flatten(1).sum(dim=1)
        apart = (squares / counts.clamp(min=1)).sqrt()
        # Weiszfeld's step is not defined on one of the points: RFA's smoothing, beside their usual distance.
        following = 1.0 / apart.clamp(min=max(1e-6 * float(apart.max()), 1e-300))
        following = following / following.sum()
        done = float((following - weights).abs().max()) < _STILL
        weights = following
        if done:
            break
    return weights


def _bounded(stacks: Sequence[Stack], max_norm: float | None) -> list[Stack]:
    squares = torch.stack([stack.changes.square().flatten(1).sum(dim=1) for stack in stacks]).sum(dim=0)
    norms = squares.sqrt()
    bound = float(norms.quantile(0.5)) if max_norm is None else max_norm
    factors = (bound / norms.clamp(min=1e-300)).clamp(max=1.0)
    return [
        Stack(stack.changes * factors.view(-1, *[1] * (stack.changes.dim() - 1)), stack.held)
        for stack in stacks
    ]
