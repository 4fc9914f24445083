"""Means of LoRA products, sent back as the best approximation of each rank: FlexLoRA and its delta form.

No [O, I] product is formed while the stacked ranks are fewer than min(O, I); see `lowrank`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.lowrank import (
    LowRank,
    RunningSum,
    best_of_rank,
    bounded,
    is_in_svd_form,
    product,
    stacked,
)
from fedray.aggregation.round_sum import NewSite, RoundSum, SiteRule, leading, send_sites
from fedray.aggregation.rule import Accumulator, Aggregation, Form, Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSVD(Aggregation):
    """The weighted mean of the products s_k B_k A_k over a site's holders, cut to the global rank.

    A client gets the truncated SVD of the global product M: singular values in B, rows of A
    orthonormal (while M is zero, the leading rows of A as they are). With p_k over the site's holders:

    * ``form="state"``: ``M <- sum p_k dW_k``, FlexLoRA (2402.11505) as published. It averages
      truncated states, so what lies beyond the smaller ranks decays round by round even without
      training (L1; rank collapse, 2602.13486).
    * ``form="delta"``: ``M <- M + sum p_k (dW_k - SVD_rk(M))``, what was trained and no more.

    The result is the best of the global rank (Eckart-Young), not the mean itself: L3 and L6.
    """

    form: Form = "state"
    name: str = "product_svd"
    transforms: tuple[Transform, ...] = ()

    @property
    def breaks(self) -> frozenset[str]:
        """L3 and L6 by truncation; L1 in the state form."""
        return frozenset({"L3", "L6"} | ({"L1"} if self.form == "state" else set()))

    @property
    def keeps_rank_indices(self) -> bool:
        """No: every round decomposes the product anew, and a singular vector may turn or change its sign."""
        return False

    @property
    def averages_states(self) -> bool:
        """See `rule.Aggregation`."""
        return self.form == "state"

    @torch.no_grad()
    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; ``seed`` changes nothing."""
        return send_sites(state, ranks, lambda site, rank: leading(in_svd_form(state, site), rank))

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""

        def open_site(opened: GlobalState, site: str) -> _ProductSum:
            return _ProductSum(opened.adapter.factors[site], self.form)

        return RoundSum(state, SiteRule(open_site=open_site, any_rank=True), self.transforms)


class _ProductSum:
    """One site's sum of products (state form) or of their changes (delta form)."""

    def __init__(self, old: Factors, form: Form) -> None:
        self._old, self._form = old, form
        self._sum = RunningSum()
        self._weight = 0.0

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        self._weight += weight
        if self._form == "state":
            self._sum.add(LowRank(sent.b + delta.b, sent.a + delta.a), weight * sent.scale)
        elif bool(delta.a.any()) or bool(delta.b.any()):
            # (B + dB)(A + dA) - B A, without the difference of two near equals.
            change = LowRank(torch.cat([delta.b, sent.b], 1), torch.cat([sent.a + delta.a, delta.a], 0))
            self._sum.add(change, weight * sent.scale)

    def finish(self, cohort_weight: float) -> NewSite:
        total = self._sum.value(1.0 / self._weight)
        if total is None:
            return NewSite()
        # In the state form the old product counts nothing, but its A keeps the ranks alive that a
        # small cohort does not reach: a rank with A = 0 and B = 0 has no gradient ever after.
        old = product(self._old, 1.0 if self._form == "delta" else 0.0)
        total = stacked([old, total])
        best = best_of_rank(bounded(total), self._old.rank, self._old.scale)
        return NewSite(factors=like(best, self._old))


def in_svd_form(state: GlobalState, site: str) -> Factors:
    """A site's factors with singular values in B, descending, and orthonormal rows in A.

    Every state that a rule of products left is so already; any other (a resumed adapter) is decomposed.
    """
    whole = state.adapter.factors[site]
    if is_in_svd_form(whole):
        return whole
    return like(best_of_rank(product(whole), whole.rank, whole.scale), whole)


def like(factors: Factors, model: Factors) -> Factors:
    """Factors in the dtype of others."""
    return Factors(a=factors.a.to(model.a.dtype), b=factors.b.to(model.b.dtype), scale=factors.scale)
