"""HetLoRA (2401.06432): clients keep ranks by capacity; the server truncates, zero-pads and weighs by norm.

Reproduced: one rank per client by capacity, between the menu's smallest and largest; distribution by
truncation, zero-padding, and weights by the norm of B A (the aggregation ``hetlora``). Left out: the
local self-pruning of ranks. Our choice: clients are ordered by declared memory among those of the round
they first appear in, and parted evenly over the menu's ranks. What fits still decides: a client gets the
deepest offer at its own rank or below. Published numbers are not checked. Without the pruning it is not the
paper's whole definition, so it claims the laws alone.
"""

from typing import Any

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State

RUNG = "laws"
PAPER = "2401.06432"


class HetLora:
    """Gives each client a rank when it first appears, and keeps to it."""

    aggregation = "hetlora"

    def __init__(self, *, capacity: str = "memory_bytes") -> None:
        """Args: ``capacity``: what orders clients: memory_bytes, memory_bytes_per_s, up_bps or down_bps."""
        allowed = ("memory_bytes", "memory_bytes_per_s", "up_bps", "down_bps")
        if capacity not in allowed:
            raise PolicyError(f"hetlora: capacity is one of {', '.join(allowed)}; found {capacity!r}.")
        self._capacity = capacity

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """The deepest offer at the client's own rank or below, and of those the largest rank.

        With cuts on the menu, which the paper does not have, the server runs no more blocks than it must.
        """
        ranks = np.array([entry.max_rank for entry in offers.menu])
        depths = np.array([entry.num_trained_blocks for entry in offers.menu])
        kept = self._drawn(cohort, np.unique(ranks[ranks > 0])) | dict(state.get("ranks", {}))
        own = np.array([kept[client_id] for client_id in cohort.client_ids.tolist()])
        most = (offers.cut * (depths.max() + 1) + depths) * (ranks.max() + 1) + ranks
        choice = offers.best(most, among=ranks[:, None] <= own)
        return choice, {"ranks": kept}

    def _drawn(self, cohort: Cohort, steps: Ints) -> dict[int, int]:
        """A rank for every client of the cohort, as if none had one yet."""
        if not len(steps):
            raise PolicyError(
                "hetlora gives clients LoRA ranks, but the menu holds no adapter; give menu ranks."
            )
        capacity: Any = getattr(cohort.device, self._capacity)
        place = np.argsort(np.lexsort((cohort.client_ids, capacity)))
        drawn = steps[place * len(steps) // len(cohort)]
        return dict(zip(cohort.client_ids.tolist(), drawn.tolist(), strict=True))
