"""What an aggregation rule is: what it sends, how it sums unlike updates, which laws it breaks.

The laws are tested for every rule; one that a rule cannot keep stands in its ``breaks``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.lowrank import LowRank, frobenius, product, stacked

LAWS: Mapping[str, str] = {
    "L1": "Aggregating untrained updates changes nothing.",
    "L2": "What nobody held stays bit for bit what it was.",
    "L3": "Equal assignments give FedAvg: the weighted mean of the factors, or of their products.",
    "L4": "The order of the clients changes nothing but the last bits.",
    "L5": "The same product under another rank, scale or balance of its factors aggregates the same.",
    "L6": "The new product is the old one plus the weighted mean of the clients' changes (an exact rule).",
}

Form = Literal["delta", "state"]
"""What a rule averages: the clients' changes, or what they ended with."""

Transform = Callable[[Adapter, float], Adapter]
"""Changes one update before it is summed: takes its delta and weight, returns the delta to use.

This is the place for clipping, noise and masks. It runs in ``add``, in the order of a rule's
``transforms``, on one update at a time, and must keep sites, names and shapes.
"""


class Accumulator(Protocol):
    """The running sum of one round; what it holds does not grow with the number of updates."""

    def add(self, update: Adapter, sent: Adapter, weight: float) -> None:
        """Add one client's update (a delta against ``sent``); all of it or, on an error, nothing.

        Sums run in the order of the calls, so the caller adds in client order.

        Raises:
            TrainingError: for an update that is not finite, or whose sites, names, shapes, scales
                or weight do not match what was sent.
        """

    def finish(self) -> GlobalState:
        """The next version of the state; the state it started from if nothing was added."""


class Aggregation(Protocol):
    """How unlike updates become one global state.

    A class that inherits from this one need only say its name, what it breaks, what it sends and how
    it sums; the other properties then have the answers given here.
    """

    @property
    def name(self) -> str:
        """As in the configuration."""

    @property
    def breaks(self) -> frozenset[str]:
        """The `LAWS` it cannot keep."""

    @property
    def exact(self) -> bool:
        """Whether it keeps L6."""
        return "L6" not in self.breaks

    @property
    def lossy(self) -> bool:
        """Whether it breaks L1; its `drift` then belongs into the record."""
        return "L1" in self.breaks

    @property
    def keeps_rank_indices(self) -> bool:
        """Whether the state goes on from its own factors, so that a rank index means the same next round.

        Then L2 holds index by index, A may be left untrained, and moments over rounds mean something.
        """
        return True

    @property
    def moves_base(self) -> bool:
        """Whether part of what was learnt goes into `GlobalState.base_delta`."""
        return False

    @property
    def freezes_a(self) -> bool:
        """Whether it needs assignments that leave A untrained (``train_a = false``)."""
        return False

    @property
    def averages_states(self) -> bool:
        """Whether it averages what clients end with, and so needs them to start from the state itself."""
        return False

    def send(self, state: GlobalState, ranks: Mapping[str, int], seed: int) -> Adapter:
        """What a client starts from: own copies, at its rank per site, the head whole.

        Args:
            state: holds the largest ranks.
            ranks: 1 or more by site; a site left out is frozen and not sent.
            seed: of this client's dispatch; only rules that start clients afresh use it.

        Raises:
            TrainingError: for a site or a rank that the state does not have.
        """

    def start(self, state: GlobalState) -> Accumulator:
        """An empty sum on top of ``state``, the one the clients were sent."""


def drift(rule: Aggregation, state: GlobalState, cohort: Sequence[tuple[Mapping[str, int], float]]) -> float:
    """Relative Frobenius change of the whole product that one round without training would cause.

    ``sqrt(sum over sites |new - old|^2) / sqrt(sum over sites |old|^2)``, from factors alone: 0.0 for
    a rule that keeps L1, and where there is nothing to lose yet. Costs one aggregation.

    Args:
        rule: the rule in question.
        state: before the round.
        cohort: the ranks by site and the weight of every client of the round.
    """
    if not rule.lossy:
        return 0.0
    accumulator = rule.start(state)
    for ranks, weight in cohort:
        sent = rule.send(state, ranks, 0)
        accumulator.add(untrained(sent), sent, weight)
    return relative_change(state, accumulator.finish())


def relative_change(old: GlobalState, new: GlobalState) -> float:
    """How far the products moved between two states, relative to the old ones; see `drift`."""
    before = after = 0.0
    for site in old.adapter.factors:
        was, now = _whole(old, site), _whole(new, site)
        before += frobenius(was) ** 2
        after += frobenius(stacked([now, LowRank(-was.b, was.a)])) ** 2
    return (after / before) ** 0.5 if before else 0.0


def _whole(state: GlobalState, site: str) -> LowRank:
    parts = [product(state.adapter.factors[site])]
    if site in state.base_delta:
        parts.append(product(state.base_delta[site]))
    return stacked(parts)


def untrained(sent: Adapter) -> Adapter:
    """The update of a client that changed nothing of what it was sent."""
    factors = {
        site: replace(f, a=torch.zeros_like(f.a), b=torch.zeros_like(f.b)) for site, f in sent.factors.items()
    }
    head, weights = ({n: torch.zeros_like(t) for n, t in part.items()} for part in (sent.head, sent.weights))
    return replace(sent, factors=factors, head=head, weights=weights)


def one_adapter(state: GlobalState) -> Adapter:
    """The state as plain LoRA factors: an unmerged base delta is stacked onto the adapter's ranks.

    What an export or an evaluation without `GlobalState.base_delta` needs. Ranks then differ by
    site and are larger than any client's; the scale of such a site is 1. Dtype is the adapter's.
    """
    factors = dict(state.adapter.factors)
    for site in state.base_delta:
        whole, own = _whole(state, site), factors[site]
        factors[site] = Factors(a=whole.a.to(own.a.dtype), b=whole.b.to(own.b.dtype), scale=1.0)
    return replace(state.adapter, factors=factors)
