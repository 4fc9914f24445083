"""Means of LoRA products in which each rank is weighed over the clients that have it: raFLoRA."""

from dataclasses import dataclass

import torch

from fedray.adapter import Factors, GlobalState
from fedray.aggregation.lowrank import LowRank, RunningSum, best_of_rank, bounded, product, stacked
from fedray.aggregation.product_svd import ProductSVD, in_svd_form, like
from fedray.aggregation.round_sum import NewSite, RoundSum, SiteRule
from fedray.aggregation.rule import Accumulator, Form


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBands(ProductSVD):
    """FlexLoRA's mean of products, rank index by rank index over its own holders; cut to the global rank.

    ``M <- sum over i of (sum over clients with r_k > i of p_k s_k b_ki a_ki) / (sum of their p_k)``: between
    two neighbouring ranks of the cohort the holders are the same, which makes them raFLoRA's partitions
    (2602.13486, -style: read was the abstract). A client gets the truncated SVD of M, as FlexLoRA has it, so
    that an index means one direction of M to all. What no client of a round has a rank for stays in M.
    ``form="delta"`` adds to M what was trained of each index, weighed alike: what late updates need.

    A round without training is so the identity, where FlexLoRA's p_k over all clients let what lies beyond
    the smaller ranks decay. Which rank of a client a direction stands in decides on its weight, hence no L5;
    L3 and L6 by truncation, and L6 because unlike ranks are weighed unlike.
    """

    name: str = "raflora"

    @property
    def breaks(self) -> frozenset[str]:
        """See the class."""
        return frozenset({"L3", "L5", "L6"})

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""

        def open_site(opened: GlobalState, site: str) -> _BandedSum:
            return _BandedSum(in_svd_form(opened, site), self.form)

        return RoundSum(state, SiteRule(open_site=open_site, any_rank=True), self.transforms)


class _BandedSum:
    """One site's sums of products, or of their changes, by rank index, with the weights of its holders."""

    def __init__(self, old: Factors, form: Form) -> None:
        self._old, self._form = old, form
        self._sums: list[RunningSum] = []
        self._weights: list[float] = []

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        more = sent.rank - len(self._sums)
        self._sums += [RunningSum() for _ in range(more)]
        self._weights += [0.0] * more
        trained = bool(delta.a.any()) or bool(delta.b.any())
        for index in range(sent.rank):
            self._weights[index] += weight
            if trained or self._form == "state":
                part = self._part(sent, delta, slice(index, index + 1))
                self._sums[index].add(part, weight * sent.scale)

    def _part(self, sent: Factors, delta: Factors, at: slice) -> LowRank:
        ended = LowRank(sent.b[:, at] + delta.b[:, at], sent.a[at] + delta.a[at])
        if self._form == "state":
            return ended
        # (b + db)(a + da) - b a, without the difference of two near equals.
        sides = torch.cat([delta.b[:, at], sent.b[:, at]], dim=1), torch.cat([ended.a, delta.a[at]])
        return LowRank(*sides)

    def finish(self, cohort_weight: float) -> NewSite:
        sums = zip(self._sums, self._weights, strict=True)
        bands = [band for total, weight in sums if (band := total.value(1.0 / weight)) is not None]
        if not bands:
            return NewSite()
        kept, old = product(self._old), self._old
        if self._form == "state":
            # What somebody held counts as it came back; the old A keeps ranks alive that come out as nothing.
            kept = LowRank(kept.b * (torch.arange(old.rank) >= len(self._sums)), kept.a)
        whole = stacked([kept, *bands])
        return NewSite(factors=like(best_of_rank(bounded(whole), old.rank, old.scale), old))
