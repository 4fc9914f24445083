"""A state's shapes and a cohort: all that a law of aggregation needs to be tried, whatever the rule.

Letters of shapes: R rank, I a linear's input width, O its output width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.rule import Aggregation

Contribution = tuple[Adapter, Adapter, float]  # delta, sent, weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One client of a round: its ranks by site, what its update weighs, and whose numbers it draws."""

    ranks: Mapping[str, int]
    weight: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LawCase:
    """A round to aggregate.

    Attributes:
        shapes: inputs, outputs and global rank of each site.
        scale: alpha / rank.
        clients: of the round.
        seed: of all numbers.
        times: L5 multiplies one client's scale by it; ``divided`` divides its A, ``more`` adds empty ranks.
    """

    shapes: Mapping[str, tuple[int, int, int]]
    scale: float
    clients: tuple[Holder, ...]
    seed: int
    times: float = 1.0
    divided: float = 1.0
    more: int = 0

    def with_equal_clients(self) -> "LawCase":
        """The same with every client at the global ranks."""
        full = {site: rank for site, (_, _, rank) in self.shapes.items()}
        return replace(self, clients=tuple(replace(client, ranks=full) for client in self.clients))

    def __str__(self) -> str:
        """In words, for whoever has to find the mistake."""
        sites = [f"{s!r} {i} -> {o} of rank {r}" for s, (i, o, r) in self.shapes.items()]
        clients = [
            f"ranks {dict(client.ranks) or 'none'} with weight {client.weight:g}" for client in self.clients
        ]
        words = f"scale {self.scale:g}; sites {', '.join(sites)}; clients with {'; '.join(clients)}"
        round_words = f"{words}; seed {self.seed}"
        if (self.times, self.divided, self.more) == (1.0, 1.0, 0):
            return round_words
        rewriting = f"scale times {self.times:g}, A divided by {self.divided:g}, {self.more} more ranks"
        return f"{round_words}; the first client rewritten: {rewriting}"


# It shows every break that the shipped rules declare.
MIXED = LawCase(
    shapes={"layers.0.up": (6, 5, 4), "layers.1.up": (6, 5, 4), "top": (5, 7, 3)},
    scale=2.0,
    clients=(
        Holder(ranks={"layers.0.up": 4, "layers.1.up": 2, "top": 3}, weight=1.0, seed=1),
        Holder(ranks={"layers.0.up": 1}, weight=3.0, seed=2),
        Holder(ranks={"top": 1}, weight=2.0, seed=3),
    ),
    seed=7,
    times=4.0,
    divided=0.25,
)


@st.composite
def law_cases(draw: st.DrawFn) -> LawCase:
    """One to three sites, one to four clients of unlike ranks, some of which hold nothing."""
    sites = ["layers.0.up", "layers.1.up", "top"][: draw(st.integers(1, 3))]
    widths = st.integers(4, 7)
    shapes = {site: (draw(widths), draw(widths), draw(st.integers(1, 4))) for site in sites}
    clients = []
    for index in range(draw(st.integers(1, 4))):
        drawn = {site: draw(st.integers(0, rank)) for site, (_, _, rank) in shapes.items()}
        ranks = {site: rank for site, rank in drawn.items() if rank}
        clients.append(Holder(ranks=ranks, weight=draw(st.floats(0.1, 10.0)), seed=index))
    return LawCase(
        shapes=shapes,
        scale=draw(st.sampled_from([0.5, 1.0, 2.0])),
        clients=tuple(clients),
        seed=draw(st.integers(0, 10_000)),
        times=draw(st.floats(0.25, 4.0)),
        divided=draw(st.floats(0.5, 2.0)),
        more=draw(st.integers(0, 2)),
    )


def started_state(rule: Aggregation, case: LawCase) -> GlobalState:
    """What the rule itself makes of one round of two clients from a fresh adapter; float64.

    So every state that a law is tried on is one that the rule can come to.
    """
    factors = {}
    for k, (site, (inputs, outputs, rank)) in enumerate(case.shapes.items()):
        a, b = _normal(case.seed + 10 * k, rank, inputs), torch.zeros(outputs, rank, dtype=torch.float64)
        factors[site] = Factors(a=a, b=b, scale=case.scale, train_a=not rule.freezes_a)
    head = {"weight": _normal(case.seed + 99, 3, 2), "bias": _normal(case.seed + 98, 3)}
    fresh = GlobalState(adapter=Adapter(factors=factors, head=head), version=3)
    pair = tuple(Holder(ranks={}, weight=1.0, seed=seed) for seed in (50, 51))
    first = replace(case, clients=pair).with_equal_clients()
    return aggregated(rule, fresh, contributions(rule, fresh, first))


def contributions(
    rule: Aggregation, state: GlobalState, case: LawCase, size: float = 1.0
) -> list[Contribution]:
    """What each client was sent and by what it moved it, ``size`` times a normal draw."""
    every = []
    for client in case.clients:
        sent = rule.send(state, client.ranks, client.seed)
        every.append((_trained_change(sent, case.seed + client.seed, size), sent, client.weight))
    return every


def aggregated(rule: Aggregation, state: GlobalState, parts: list[Contribution]) -> GlobalState:
    """The state after a round of these."""
    accumulator = rule.start(state)
    for delta, sent, weight in parts:
        accumulator.add(delta, sent, weight)
    return accumulator.finish()


def rewritten(rule: Aggregation, case: LawCase, state: GlobalState, part: Contribution) -> Contribution:
    """The same products under other factors: scale times c, A divided by t, B times t / c, empty ranks.

    An A that nobody trains stays the one that all share: there the ranks are its own, empty in B alone.
    """
    delta, sent, weight = part

    def other(factors: Factors, whole: Factors) -> Factors:
        divided, more = case.divided, min(case.more, whole.rank - factors.rank)
        if factors.train_a:
            a = torch.cat([factors.a / divided, factors.a.new_zeros(more, factors.a.shape[1])])
        else:
            a, divided = whole.a[: factors.rank + more], 1.0
        empty = factors.b.new_zeros(factors.b.shape[0], more)
        b = torch.cat([factors.b * (divided / case.times), empty], dim=1)
        return replace(factors, a=a, b=b, scale=factors.scale * case.times)

    both = [
        replace(
            adapter,
            factors={site: other(f, state.adapter.factors[site]) for site, f in adapter.factors.items()},
        )
        for adapter in (delta, sent)
    ]
    return both[0], both[1], weight


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _trained_change(sent: Adapter, seed: int, size: float) -> Adapter:
    def change(tensor: Tensor, k: int) -> Tensor:
        return size * _normal(1000 * seed + k, *tensor.shape)

    factors = {
        site: replace(f, a=change(f.a, 2 * k) * f.train_a, b=change(f.b, 2 * k + 1))
        for k, (site, f) in enumerate(sent.factors.items())
    }
    head = {name: change(tensor, 50 + k) for k, (name, tensor) in enumerate(sent.head.items())}
    return Adapter(factors=factors, head=head)
