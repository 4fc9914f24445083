"""Means of LoRA factors of unlike ranks, A and B apart: FedIT with zero padding, HetLoRA, RBLA, FFA-LoRA.

A mean of factors is not the factors of the mean product, so no mode that trains A is exact (L6); and the
same product under other factors has another mean (L5), unless both sides are rescaled alike. For that
the scale s_k is folded into the factors, sqrt(s_k) on each side, before they meet. Where nobody trains A it
stays bit for bit, and s_k goes into B alone.

Letters of shapes: R the global rank, I a linear's input width, O its output width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.lowrank import frobenius, product
from fedray.aggregation.round_sum import NewSite, RoundSum, SiteRule, leading, send_sites
from fedray.aggregation.rule import Accumulator, Aggregation, Form, Transform
from fedray.errors import ConfigError

Mode = Literal["zero_pad", "hetlora", "dimension", "frozen_a"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorMean(Aggregation):
    """The weighted mean of A and of B, rank index by rank index.

    A client gets the first r_k rows of A and columns of B. With w_k its weight and x_k its
    delta (``form="delta"``) or its trained factors (``form="state"``), rank index i becomes
    ``sum over holders w_k x_k[i] / d_i``, added to what it was in the delta form:

    * ``zero_pad``: d_i sums the weights of the whole cohort, those without index i or without the
      site counting as zeros, so what few hold is diluted. FedIT (2305.05644) is this at equal ranks.
    * ``hetlora`` (2401.06432): w_k times ``|s_k B_k A_k|_F`` of the trained product, by site; d_i sums
      them over all holders of the site, index held or not. The paper's weights are the norms
      alone, so give equal weights to reproduce it.
    * ``dimension`` (RBLA, 2408.08699): d_i sums the weights of those that hold index i.
    * ``frozen_a`` (FFA-LoRA, 2403.12313): of B alone, over one A that nobody trains; d_i sums the weights of
      all holders of the site. With A_k the first r_k rows of that A the mean of B_k, padded with zeros, has
      the mean product for any ranks: exact.

    The papers average states. For zero_pad and hetlora that shrinks what not everybody holds even
    without training (L1), hence the delta form, which differs from the paper only where ranks differ
    or an update is stale. What nobody held is kept in both forms, where the papers' padding
    would make it zero.

    Raises:
        ConfigError: at construction, for ``frozen_a`` with states, which would only lose what few hold.
    """

    mode: Mode
    form: Form = "delta"
    name: str = "factor_mean"
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if self.mode == "frozen_a" and self.form == "state":
            raise ConfigError(
                "mode frozen_a sums changes of B, which at equal ranks are FFA-LoRA's own states; with form: "
                "state what few clients hold would shrink, so drop form."
            )

    @property
    def breaks(self) -> frozenset[str]:
        """L5 and L6 where A is trained; L1 where states are diluted; L3 where norms replace the weights."""
        if self.mode == "frozen_a":
            return frozenset()
        broken = {"L5", "L6"}
        if self.form == "state" and self.mode != "dimension":
            broken.add("L1")
        if self.mode == "hetlora":
            broken.add("L3")
        return frozenset(broken)

    @property
    def freezes_a(self) -> bool:
        """See `rule.Aggregation.freezes_a`."""
        return self.mode == "frozen_a"

    @property
    def averages_states(self) -> bool:
        """See `rule.Aggregation`."""
        return self.form == "state"

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """See `rule.Aggregation.send`; truncation, so ``seed`` changes nothing."""
        return send_sites(state, ranks, lambda site, rank: leading(state.adapter.factors[site], rank))

    def start(self, state: GlobalState) -> Accumulator:
        """See `rule.Aggregation.start`."""

        def open_site(opened: GlobalState, site: str) -> _PaddedSum:
            return _PaddedSum(opened.adapter.factors[site], self.mode, self.form)

        rule = SiteRule(open_site=open_site, shared_a=self.freezes_a)
        return RoundSum(state, rule, self.transforms)


class _PaddedSum:
    """One site's padded sums and, by rank index, the weight of those that hold it."""

    def __init__(self, old: Factors, mode: Mode, form: Form) -> None:
        self._old, self._mode, self._form = old, mode, form
        self._a_RI = torch.zeros_like(old.a, dtype=torch.float64)
        self._b_OR = torch.zeros_like(old.b, dtype=torch.float64)
        self._held_R = torch.zeros(old.rank, dtype=torch.float64)
        self._weight = 0.0

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        a, b, rank = delta.a, delta.b, delta.rank
        if self._mode == "hetlora" or self._form == "state":
            trained = replace(sent, a=sent.a.double() + a, b=sent.b.double() + b)
            if self._mode == "hetlora":
                weight *= frobenius(product(trained))
            if self._form == "state":
                a, b = trained.a, trained.b
        ratio = sent.scale / self._old.scale
        if self._old.train_a:
            ratio = ratio**0.5
            self._a_RI[:rank].add_(a, alpha=weight * ratio)
        self._b_OR[:, :rank].add_(b, alpha=weight * ratio)
        self._held_R[:rank] += weight
        self._weight += weight

    def finish(self, cohort_weight: float) -> NewSite:
        held = self._held_R > 0
        share = self._divisor(cohort_weight)[held]
        a, b = self._old.a.clone(), self._old.b.clone()
        mean_a, mean_b = self._a_RI[held] / share[:, None], self._b_OR[:, held] / share
        if self._form == "delta":
            mean_a, mean_b = a[held].double() + mean_a, b[:, held].double() + mean_b
        b[:, held] = mean_b.to(b.dtype)
        if self._old.train_a:
            a[held] = mean_a.to(a.dtype)
        return NewSite(factors=replace(self._old, a=a, b=b))

    def _divisor(self, cohort_weight: float) -> torch.Tensor:
        match self._mode:
            case "zero_pad":
                return torch.full_like(self._held_R, cohort_weight)
            case "hetlora" | "frozen_a":
                return torch.full_like(self._held_R, self._weight)
            case "dimension":
                return self._held_R
        assert_never(self._mode)
