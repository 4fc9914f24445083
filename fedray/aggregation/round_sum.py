"""The way every rule sums a round: check an update whole, then fold it site by site, then the head.

A rule brings only what differs, a `SiteSum`; what is checked and how heads are averaged is the same.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from fedray.adapter import Adapter, Factors, GlobalState, all_finite, head_name
from fedray.aggregation.coverage_mean import CoverageSum
from fedray.aggregation.rule import Transform
from fedray.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSite:
    """What a round makes of one site; None where that part stays what it was."""

    factors: Factors | None = None
    base_delta: Factors | None = None


class SiteSum(Protocol):
    """One site's running sum over the clients that hold it."""

    def add(self, sent: Factors, delta: Factors, weight: float) -> None:
        """Add one client's trained factors, ``sent + delta``."""

    def finish(self, cohort_weight: float) -> NewSite:
        """What the site comes to; ``cohort_weight`` counts clients without the site, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRule:
    """What clients must have been sent for a sum to mean something.

    Attributes:
        zero_start: whether clients must have started from B = 0.
        any_rank: whether an update's rank may pass the state's.
        shared_a: whether clients must have the state's own A, and leave it untrained.
    """

    zero_start: bool = False
    any_rank: bool = False
    shared_a: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRule(StartRule):
    """What tells one rule's sum from another's.

    Attributes:
        open_site: an empty sum for a site of the state.
    """

    open_site: Callable[[GlobalState, str], SiteSum]


class RoundSum:
    """`rule.Accumulator` of every rule. Sums are float64; results have the state's dtype (fp32)."""

    def __init__(self, state: GlobalState, rule: SiteRule, transforms: tuple[Transform, ...]) -> None:
        self._state = state
        self._rule = rule
        self._transforms = transforms
        self._sites: dict[str, SiteSum] = {}
        self._head: dict[str, CoverageSum] = {}
        self._weights: dict[str, CoverageSum] = {}
        self._weight = 0.0

    @torch.no_grad()
    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        """See `rule.Accumulator.add`."""
        check_update(update, sent, weight, self._state, self._rule)
        for transform in self._transforms:
            update = transform(update, weight)
            _check_against_sent(update, sent)
        for site, delta in update.factors.items():
            if site not in self._sites:
                self._sites[site] = self._rule.open_site(self._state, site)
            self._sites[site].add(sent.factors[site], delta, weight)
        old = self._state.adapter
        for name, tensor in update.head.items():
            place = sent.places.get(head_name(name))
            self._head.setdefault(name, CoverageSum(old.head[name])).add(tensor, place, weight)
        for name, tensor in update.weights.items():
            place = sent.places.get(name)
            self._weights.setdefault(name, CoverageSum(old.weights[name])).add(tensor, place, weight)
        self._weight += weight

    @torch.no_grad()
    def finish(self) -> GlobalState:
        """See `rule.Accumulator.finish`."""
        if not self._weight:
            return self._state
        old = self._state.adapter
        head = {**old.head, **{name: total.finish() for name, total in self._head.items()}}
        weights = {**old.weights, **{name: total.finish() for name, total in self._weights.items()}}
        factors, base_delta = dict(old.factors), dict(self._state.base_delta)
        for site in old.factors:
            new = self._sites[site].finish(self._weight) if site in self._sites else NewSite()
            if new.factors is not None:
                factors[site] = new.factors
            if new.base_delta is not None:
                base_delta[site] = new.base_delta
        adapter, version = Adapter(factors=factors, head=head, weights=weights), self._state.version + 1
        return replace(self._state, adapter=adapter, base_delta=base_delta, version=version)


def check_update(update: Adapter, sent: Adapter, weight: float, state: GlobalState, rule: StartRule) -> None:
    """Raises TrainingError for what `rule.Accumulator.add` refuses."""
    if not (math.isfinite(weight) and weight > 0):
        raise TrainingError(f"An update's weight must be a finite number above 0, found {weight}; not added.")
    _check_against_state(sent, state, rule)
    _check_against_sent(update, sent)


def send_sites(state: GlobalState, ranks: Mapping[str, int], shape: Callable[[str, int], Factors]) -> Adapter:
    """An adapter with ``shape(site, rank)`` at every asked site and a copy of the head.

    Raises:
        TrainingError: for a site the state does not have, or a rank outside 1 to the state's.
    """
    for site, rank in ranks.items():
        if site not in state.adapter.factors:
            raise TrainingError(
                f"Site {site!r} was asked for, but the global adapter has {_listed(state.adapter.factors)}."
            )
        largest = state.adapter.factors[site].rank
        if not 1 <= rank <= largest:
            raise TrainingError(
                f"Rank {rank} was asked for at {site!r}, but the global adapter has ranks 1 to {largest} "
                "there; leave the site out to freeze it."
            )
    head = {name: tensor.clone() for name, tensor in state.adapter.head.items()}
    return Adapter(factors={site: shape(site, rank) for site, rank in ranks.items()}, head=head)


def leading(factors: Factors, rank: int) -> Factors:
    """The first ``rank`` rows of A and columns of B, as copies: a view would travel whole."""
    return replace(factors, a=factors.a[:rank].clone(), b=factors.b[:, :rank].clone())


def _check_against_state(sent: Adapter, state: GlobalState, rule: StartRule) -> None:
    unknown = [
        *(sent.factors.keys() - state.adapter.factors.keys()),
        *(sent.head.keys() - state.adapter.head.keys()),
        *(sent.weights.keys() - state.adapter.weights.keys()),
    ]
    if unknown:
        raise TrainingError(
            f"What was sent has {_listed(unknown)}, which the global state does not; update not added."
        )
    for site, f in sent.factors.items():
        whole = state.adapter.factors[site]
        same_widths = f.a.shape[1] == whole.a.shape[1] and f.b.shape[0] == whole.b.shape[0]
        if not same_widths or f.b.shape[1] != f.rank or (f.rank > whole.rank and not rule.any_rank):
            raise TrainingError(
                f"What was sent at {site!r} has A {list(f.a.shape)} and B {list(f.b.shape)}, which does not "
                f"fit the global A {list(whole.a.shape)} and B {list(whole.b.shape)}; update not added."
            )
        if not (math.isfinite(f.scale) and f.scale > 0):
            raise TrainingError(f"The scale at {site!r} must be above 0, found {f.scale}; update not added.")
        if rule.zero_start and bool(f.b.any()):
            raise TrainingError(
                f"This rule stacks what was trained since B = 0, but a client was sent another B at {site!r}"
                "; send it what the rule's send() gives. Update not added."
            )
        if rule.shared_a and (f.train_a or not torch.equal(f.a, whole.a[: f.rank])):
            raise TrainingError(
                f"This rule sums B over one A that nobody trains, but a client has another A at {site!r}, or "
                "trains it; give it train_a = false and what the rule's send() gives. Update not added."
            )


def _check_against_sent(update: Adapter, sent: Adapter) -> None:
    got, expected = update.tensors(), sent.tensors()
    if got.keys() != expected.keys():
        raise TrainingError(
            f"An update must have what was sent and nothing else; only one side has "
            f"{_listed(got.keys() ^ expected.keys())}. Update not added."
        )
    for name, tensor in got.items():
        if tensor.shape != expected[name].shape:
            raise TrainingError(
                f"{name} was sent as {list(expected[name].shape)} and came back as {list(tensor.shape)}; "
                "update not added."
            )
        if not all_finite(tensor):
            raise TrainingError(
                f"{name} of an update holds {int((~torch.isfinite(tensor)).sum())} values that are not "
                "finite numbers; update not added. Lower the learning rate or clip gradients."
            )
    for site, f in update.factors.items():
        if f.scale != sent.factors[site].scale:
            raise TrainingError(
                f"{site!r} was sent with scale {sent.factors[site].scale} and came back with {f.scale}; "
                "update not added."
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no sites"
