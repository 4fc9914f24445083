"""HetLoRA (2401.06432): clients keep ranks by capacity and prune them; the server pads and weighs by norm.

Reproduced: one rank per client by capacity, between the menu's smallest and largest; distribution by
truncation; the penalty on the norms of the last ranks as a local rule; self-pruning: a client whose last
ranks shrank in a round goes on with max(r_min, floor(gamma r)) ranks, which it reports; zero-padding, and
weights by the norm of B A (the aggregation ``hetlora``). Pruning takes effect with what a client is next
sent: the update of the round itself still has the last ranks.

The paper has no code. Published re-implementations round gamma r, which for ranks up to 50 leaves an empty
tail that never shrinks; here it is the floor (`fedray.training.tails`). Gamma is ``training.tail_gamma``,
lambda ``training.tail_penalty`` or by default 1e-3, a re-implementation's (FlexLoRA's): the paper's was not
checked. Our choices: clients are ordered by declared memory among those of the round they first appear in,
and parted evenly over the menu's ranks; every rank between them is then on the menu; what fits still
decides: a client gets the deepest offer at its own rank or below. With cuts on the menu, which the paper
does not have, nobody is penalised or pruned. Published numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State, View

RUNG = "definition"
PAPER = "2401.06432"
CHECKS = ("../tests/policies/test_hetlora.py", "../tests/training/test_tails.py")


class HetLora:
    """Gives each client a rank when it first appears, and keeps to it until the client prunes it.

    Its state: ``ranks`` by client, and the ``smallest`` that pruning may come to, 0 with cuts.
    """

    aggregation = "hetlora"
    local_rules: ClassVar = {"tail_penalty": 1e-3}
    observables = frozenset({"kept_rank"})

    def __init__(self, *, capacity: str = "memory_bytes") -> None:
        """Args: ``capacity``: what orders clients: memory_bytes, memory_bytes_per_s, up_bps or down_bps."""
        allowed = ("memory_bytes", "memory_bytes_per_s", "up_bps", "down_bps")
        if capacity not in allowed:
            raise PolicyError(f"hetlora: capacity is one of {', '.join(allowed)}; found {capacity!r}.")
        self._capacity = capacity
        self._steps: Ints = np.zeros(0, np.int64)

    def menu(self, view: View) -> Sequence[Assignment]:
        """The configuration's, and without cuts every rank that pruning may come to."""
        self._steps = np.unique([entry.max_rank for entry in view.menu if entry.max_rank])
        if any(entry.split for entry in view.menu):
            return view.menu
        found = dict.fromkeys(view.menu)
        for entry in view.menu:
            found |= dict.fromkeys(self._pruned(entry))
        return tuple(found)

    def _pruned(self, entry: Assignment) -> list[Assignment]:
        lora = entry.adapter
        if not isinstance(lora, Lora):
            return []
        return [
            replace(entry, adapter=replace(lora, ranks=tuple(min(own, rank) for own in lora.ranks)))
            for rank in range(int(self._steps[0]), entry.max_rank)
        ]

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """The deepest offer at the client's own rank or below, and of those the largest rank.

        With cuts on the menu the server runs no more blocks than it must.
        """
        ranks = np.array([entry.max_rank for entry in offers.menu])
        depths = np.array([entry.num_trained_blocks for entry in offers.menu])
        if not len(self._steps):  # asked without its menu
            self._steps = np.unique(ranks[ranks > 0])
        kept = self._drawn(cohort) | dict(state.get("ranks", {}))
        own = np.array([kept[client_id] for client_id in cohort.client_ids.tolist()])
        most = (offers.cut * (depths.max() + 1) + depths) * (ranks.max() + 1) + ranks
        choice = offers.best(most, among=ranks[:, None] <= own)
        floor = 0 if offers.has_cut.any() else int(self._steps[0])
        return choice, {**state, "ranks": kept, "smallest": floor}

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Clients whose last ranks shrank keep fewer from now on."""
        ranks, smallest = dict(state.get("ranks", {})), state.get("smallest", 0)
        if not smallest:
            return state
        for record in records:
            own, reported = ranks.get(record["client_id"]), record["statistics"].get("kept_rank")
            if own is not None and reported is not None:
                # Who was given less than its rank because no more fits has pruned nothing by that.
                given = Assignment.from_json(record["assignment"]).max_rank
                if reported[0] < given:
                    ranks[record["client_id"]] = min(own, max(smallest, int(reported[0])))
        return {**state, "ranks": ranks}

    def _drawn(self, cohort: Cohort) -> dict[int, int]:
        """A rank for every client of the cohort, as if none had one yet."""
        steps = self._steps
        if not len(steps):
            raise PolicyError(
                "hetlora gives clients LoRA ranks, but the menu holds no adapter; give menu ranks."
            )
        capacity: Any = getattr(cohort.device, self._capacity)
        place = np.argsort(np.lexsort((cohort.client_ids, capacity)))
        drawn = steps[place * len(steps) // len(cohort)]
        return dict(zip(cohort.client_ids.tolist(), drawn.tolist(), strict=True))
