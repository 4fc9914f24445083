"""Means of factors beside what their product misses: FedEx-LoRA, exact for any mix of ranks.

Letters of shapes: R the global rank, I a linear's input width, O its output width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.lowrank import LowRank, RunningSum, grown, stacked, trimmed
from fedray.aggregation.round_sum import NewSite, RoundSum, SiteRule, leading, send_sites
from fedray.aggregation.rule import Accumulator, Aggregation, Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class FedExLora(Aggregation):
    """FedEx-LoRA (2410.09432): A and B become their means, and the base takes what those leave out.

    With p_k over a site's holders, d their changes, padded with zeros to the global rank:

        A <- A + sum p_k dA_k,   B <- B + sum p_k dB_k
        base delta <- base delta + s sum p_k (dB_k - mean dB) (dA_k - mean dA)

    The last term is M - s B A, M being the mean of the clients' products where all have the global rank,
    as in the paper; where a client has fewer ranks its change is counted, as everywhere here. The term is
    kept in as many ranks as it has, (K - 1) R of K clients at most, in `GlobalState.base_delta`, unmerged as
    FLoRA's stack is: base weights stay frozen and shared, and every client is sent it. It grows round by
    round up to min(O, I) ranks. It keeps all laws.
    """

    name: str = "fedex_lora"
    transforms: tuple[Transform, ...] = ()

    @property
    def breaks(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def moves_base(self) -> bool:
        """Yes, by what the means leave out."""
        return True

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; truncation, so ``seed`` changes nothing."""
        return send_sites(state, ranks, lambda site, rank: leading(state.adapter.factors[site], rank))

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""
        return RoundSum(state, SiteRule(open_site=_MeansAndRest), self.transforms)


class _MeansAndRest:
    """One site's sums of dA and of dB, and of what each client's product moved by beyond B dA + dB A."""

    def __init__(self, state: GlobalState, site: str) -> None:
        self._old, self._base = state.adapter.factors[site], state.base_delta.get(site)
        self._a_RI = torch.zeros_like(self._old.a, dtype=torch.float64)
        self._b_OR = torch.zeros_like(self._old.b, dtype=torch.float64)
        self._rest = RunningSum()
        self._held_ranks = 0
        self._weight = 0.0

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        side = (sent.scale / self._old.scale) ** 0.5
        self._a_RI[: sent.rank].add_(delta.a, alpha=weight * side)
        self._b_OR[:, : sent.rank].add_(delta.b, alpha=weight * side)
        self._held_ranks = max(self._held_ranks, sent.rank)
        self._weight += weight
        if bool(delta.a.any()) or bool(delta.b.any()):
            self._rest.add(self._beyond(sent, delta, side), weight)

    def finish(self, cohort_weight: float) -> NewSite:
        total = self._rest.value(1.0 / self._weight)
        if total is None:
            return NewSite()
        mean_a, mean_b = self._a_RI / self._weight, self._b_OR / self._weight
        rest = trimmed(stacked([total, LowRank(-self._old.scale * mean_b, mean_a)]))
        a, b, held = self._old.a.clone(), self._old.b.clone(), self._held_ranks
        if self._old.train_a:
            a[:held] = (a[:held].double() + mean_a[:held]).to(a.dtype)
        b[:, :held] = (b[:, :held].double() + mean_b[:, :held]).to(b.dtype)
        base = grown(self._base, rest, a.dtype) if len(rest.a) else None
        return NewSite(factors=replace(self._old, a=a, b=b), base_delta=base)

    def _beyond(self, sent: Factors, delta: Factors, side: float) -> LowRank:
        """The change of s_k B_k A_k less s (B dA + dB A), in the old factors and the global scale s."""
        old, scale = leading(self._old, sent.rank), self._old.scale
        if sent.scale == scale and torch.equal(sent.a, old.a) and torch.equal(sent.b, old.b):
            return LowRank(scale * delta.b.double(), delta.a.double())
        # Other factors than the state's own: of an older version, or rewritten.
        b = [sent.scale * delta.b, sent.scale * sent.b, -scale * side * delta.b, -scale * old.b]
        a = [sent.a + delta.a, delta.a, old.a, side * delta.a]
        return LowRank(torch.cat(b, 1).double(), torch.cat(a, 0).double())
