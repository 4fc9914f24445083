"""Power of Choice (2010.01243): of some candidates those whose loss is largest.

Reproduced: the paper's form without extra messages or computing (rpow-d). Candidates are drawn without
replacement with chances in proportion to their rows; of these the ones are asked whose mean loss, as reported
when they last took part, is largest. Who never took part counts as infinite and so comes first; of equals the
one drawn first. Published numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.known import Known, learnt, look_up
from fedray.policy import State, View
from fedray.seeds import weighted_sample


class PowerOfChoice:
    """Its state has the last loss of each client that took part."""

    def __init__(self, *, candidates: int | None = None) -> None:
        """Args: ``candidates``: drawn in a round, the paper's d; twice what a round asks for if absent."""
        self._candidates = candidates

    def select(self, view: View, state: State) -> Ints:
        """The largest losses among the candidates. Raises PolicyError if candidates are too few."""
        count = min(view.clients_per_round, view.num_clients)
        drawn = 2 * count if self._candidates is None else self._candidates
        if drawn < count:
            raise PolicyError(
                f"power_of_choice: a round asks {count} clients, more than candidates = {drawn}; raise it, "
                "or lower rounds.clients_per_round."
            )
        everybody = np.arange(view.num_clients)
        able = everybody[view.may_be_asked(everybody)]
        found = weighted_sample(view.seed, able, view.num_rows[able].astype(np.float64), drawn)
        losses = look_up(state.get("known", {}), "loss", found, np.inf)
        return found[np.argsort(-losses, kind="stable")[:count]]

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """The losses of those whose update counted."""
        fine = [record for record in records if record["outcome"] == "ok"]
        if not fine:
            return state
        news: Known = {
            "ids": np.array([record["client_id"] for record in fine], np.int64),
            "loss": np.array([record["loss"] for record in fine], np.float64),
        }
        return {"known": learnt(state.get("known", {}), news)}
