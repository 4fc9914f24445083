"""InclusiveFL's momentum distillation: a shallow model learns in its last block what deeper ones do above."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState, leading
from fedray.aggregation.factor_mean import FactorMean
from fedray.aggregation.rule import Accumulator, Aggregation, Transform
from fedray.errors import ConfigError

# The number of a block in a site's path, as in encoder.layer.3.attention.self.query.
_BLOCK = re.compile(r"\.(\d+)\.")
_KEPT = "deeper/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusive(Aggregation):
    """InclusiveFL-style (2202.08036): means over who holds what, after momentum distillation.

    With d the number of a client's blocks and d' the next larger one among those of the last round, the
    client's change of each LoRA factor and each weight of its last block becomes

        (1 - beta) own + beta mean over blocks d, ..., d' - 1 of what clients of depth d' changed there

    in the last round, at the client's own ranks. What a block is lies in its number; so factors of one name
    in two blocks must have one shape, and others, and parts of a width, are left as they are. The paper's
    full text was not checked: this is what FedRA's authors re-implemented, with their beta of 0.2. What is
    kept of a round are the mean changes of every depth's clients, above the next smaller depth, among the
    state's moments.

    Raises:
        ConfigError: at construction, for a beta that is not from 0 to below 1.
    """

    beta: float = 0.2
    name: str = "inclusivefl"
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(f"Option 'beta' of inclusivefl is from 0 to below 1, found {self.beta}.")

    @property
    def breaks(self) -> frozenset[str]:
        """L1: what deeper models learnt in the last round moves an untrained one; L5 and L6 as means do."""
        return frozenset({"L1", "L5", "L6"})

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; truncation, so ``seed`` changes nothing."""
        return self._mean().send(state, ranks, seed)

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""
        return _DistilledSum(self, self._mean().start(state), state)

    def _mean(self) -> FactorMean:
        return FactorMean(mode="dimension", name=self.name)


class _DistilledSum:
    """A sum of changes of which some are mixed with those of the last round."""

    def __init__(self, rule: Inclusive, total: Accumulator, state: GlobalState) -> None:
        self._sum, self._state, self._rule = total, state, rule
        self._last = _kept(state.moments)
        self._groups: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self._weights: dict[int, float] = defaultdict(float)

    @torch.no_grad()
    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        for transform in self._rule.transforms:  # what a client sends, before it is mixed with anybody's
            update = transform(update, weight)
        depth = depth_of([*update.factors, *update.weights])
        self._sum.add(self._distilled(update, depth), sent, weight)
        self._weights[depth] += weight
        old = self._state.adapter
        for site, f in update.factors.items():
            self._remember(depth, f"{site}.lora_A", f.a * weight, old.factors[site].a)
            self._remember(depth, f"{site}.lora_B", f.b * weight, old.factors[site].b)
        for name, own in update.weights.items():
            if own.shape == old.weights[name].shape:
                self._remember(depth, name, own * weight, old.weights[name])

    def _remember(self, depth: int, name: str, change: Tensor, like: Tensor) -> None:
        total = self._groups[depth].setdefault(name, torch.zeros_like(like, dtype=torch.float64))
        leading(total, change.shape).add_(change)

    @torch.no_grad()
    def finish(self) -> GlobalState:
        new = self._sum.finish()
        if new is self._state:
            return new
        others = {name: t for name, t in new.moments.items() if not name.startswith(_KEPT)}
        return replace(new, moments=others | self._to_keep())

    def _to_keep(self) -> dict[str, Tensor]:
        """Mean changes of each depth's clients above the next smaller depth there is."""
        depths = sorted(self._groups)
        return {
            f"{_KEPT}{depth}/{name}": total / self._weights[depth]
            for below, depth in zip([0, *depths], depths, strict=False)
            for name, total in self._groups[depth].items()
            if (block := block_of(name)) is not None and block >= below
        }

    def _distilled(self, update: Adapter, depth: int) -> Adapter:
        deeper = min((other for other in self._last if other > depth), default=None)
        if deeper is None:
            return update
        factors = {
            site: self._mixed(site, f, depth, deeper) if block_of(site) == depth - 1 else f
            for site, f in update.factors.items()
        }
        weights = {
            name: self._mean_of(self._above(name, depth, deeper), own)
            if block_of(name) == depth - 1 and own.shape == self._state.adapter.weights[name].shape
            else own
            for name, own in update.weights.items()
        }
        return replace(update, factors=factors, weights=weights)

    def _mixed(self, site: str, own: Factors, depth: int, deeper: int) -> Factors:
        a, b = (self._above(f"{site}.lora_{side}", depth, deeper) for side in "AB")
        return replace(own, a=self._mean_of(a, own.a) if own.train_a else own.a, b=self._mean_of(b, own.b))

    def _above(self, name: str, depth: int, deeper: int) -> list[Tensor]:
        """A tensor's namesakes in the blocks that the deeper model has more, where they were trained."""
        names = [_BLOCK.sub(f".{block}.", name, count=1) for block in range(depth, deeper)]
        return [self._last[deeper][other] for other in names if other in self._last[deeper]]

    def _mean_of(self, theirs: list[Tensor], own: Tensor) -> Tensor:
        parts = [leading(tensor, own.shape) for tensor in theirs]
        fitting = [tensor for tensor in parts if tensor.shape == own.shape]
        if not fitting:
            return own
        beta = self._rule.beta
        return ((1 - beta) * own.double() + beta * torch.stack(fitting).mean(0)).to(own.dtype)


def depth_of(sites: Iterable[str]) -> int:
    """How many blocks a client has whose highest trained site is one of these; 0 without any in a block."""
    return max((block + 1 for block in map(block_of, sites) if block is not None), default=0)


def block_of(site: str) -> int | None:
    """The number of the block that a site, or a tensor of one, lies in; None outside of blocks."""
    found = _BLOCK.search(site)
    return None if found is None else int(found[1])


def _kept(moments: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The last round's mean changes by depth and flat name."""
    kept: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in moments.items():
        if name.startswith(_KEPT):
            depth, _, flat = name.removeprefix(_KEPT).partition("/")
            kept[int(depth)][flat] = tensor
    return kept
