"""Stacks of the clients' factors on top of the frozen base: FLoRA, exact for any mix of ranks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.lowrank import LowRank, RunningSum, grown
from fedray.aggregation.round_sum import NewSite, RoundSum, SiteRule, send_sites
from fedray.aggregation.rule import Accumulator, Aggregation, Transform
from fedray.errors import TrainingError
from fedray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack(Aggregation):
    """FLoRA (2409.05976): ``base delta <- base delta + sum p_k s_k B_k A_k``, p_k over a site's holders.

    The sum is kept as stacked factors with every scale inside them (the published code relies on one
    scale for all), in `GlobalState.base_delta`, unmerged: base weights stay frozen, shared and
    quantised as they are. Clients run with the base delta and start every round from a seeded A, as PEFT
    draws it, and B = 0; the global adapter itself keeps B = 0. The stack's rank grows by the sum of
    the clients' ranks a round, up to min(O, I). It keeps all laws.
    """

    name: str = "stack"
    transforms: tuple[Transform, ...] = ()

    @property
    def breaks(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def keeps_rank_indices(self) -> bool:
        """No: every dispatch has an A of its own."""
        return False

    @property
    def moves_base(self) -> bool:
        """Yes, all of it."""
        return True

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; a fresh A by ``seed`` and site, B = 0.

        Raises:
            TrainingError: also if the global adapter has a B other than 0, which clients would not see.
        """
        for site, f in state.adapter.factors.items():
            if bool(f.b.any()):
                raise TrainingError(
                    f"{self.name} starts clients from B = 0, but the global adapter has one at {site!r}, "
                    "which they would not see; start from a fresh adapter, or aggregate with another rule."
                )
        return send_sites(
            state, ranks, lambda site, rank: _fresh(state.adapter.factors[site], rank, site, seed)
        )

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""
        rule = SiteRule(open_site=_StackedSum, zero_start=True, any_rank=True)
        return RoundSum(state, rule, self.transforms)


def _fresh(whole: Factors, rank: int, site: str, seed: int) -> Factors:
    # PEFT draws A by kaiming_uniform_(a=sqrt(5)), which is uniform within 1 / sqrt(I).
    bound = 1.0 / math.sqrt(whole.a.shape[1])
    generator = torch.Generator().manual_seed(derive_seed(seed, f"fresh A of {site}"))
    a = torch.empty(rank, whole.a.shape[1], dtype=whole.a.dtype).uniform_(-bound, bound, generator=generator)
    return Factors(a=a, b=torch.zeros(whole.b.shape[0], rank, dtype=whole.b.dtype), scale=whole.scale)


class _StackedSum:
    """One site's stack of what was trained this round."""

    def __init__(self, state: GlobalState, site: str) -> None:
        self._old = state.base_delta.get(site)
        self._dtype = state.adapter.factors[site].a.dtype
        self._sum = RunningSum()
        self._weight = 0.0

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        self._weight += weight
        if bool(delta.b.any()):  # a B still 0 has a product of 0, and would only take up ranks
            self._sum.add(LowRank(sent.b + delta.b, sent.a + delta.a), weight * sent.scale)

    def finish(self, cohort_weight: float) -> NewSite:
        total = self._sum.value(1.0 / self._weight)
        if total is None:
            return NewSite()
        return NewSite(base_delta=grown(self._old, total, self._dtype))
