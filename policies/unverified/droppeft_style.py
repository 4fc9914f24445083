"""DropPEFT-style (2503.10217): how many blocks a client leaves out is learnt from what rounds gained.

Read was the abstract. Built: submodels that leave out none, a quarter, half or three quarters of the blocks,
drawn anew for every client and round; a bandit for each class of devices, which tries every share, then takes
the one whose clients' losses fell most a virtual second, and now and then another. A client's gain is how far
its loss lies below its last one. Not built: layers dropped in every step, and ratios searched between the
given ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State, View
from fedray.seeds import generator

RUNG = "laws"
PAPER = "2503.10217"
KEPT = (0.25, 0.5, 0.75, 1.0)


class DropPEFT:
    """A bandit over shares of blocks. Its state: ``gains`` and ``tries`` by class and share, ``losses``."""

    aggregation = "coverage_mean"

    def __init__(self, *, explore: float = 0.1) -> None:
        """Args: ``explore``: chance that a client is given any share."""
        if not 0 <= explore <= 1:
            raise PolicyError(f"droppeft_style: explore is from 0 to 1, found {explore}.")
        self._explore = explore

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of each whole LoRA entry on all blocks the leading ones for every share, as a price of any."""
        whole = [entry for entry in view.menu if entry.adapts_all_it_runs]
        if not whole:
            raise PolicyError(
                "droppeft_style leaves out blocks of whole models, and the menu has none with LoRA on all "
                "blocks; give menu.ranks and menu.depths: [all]."
            )
        deepest = max(entry.cut for entry in whole)
        best = max((e for e in whole if e.cut == deepest), key=lambda e: e.max_rank)
        counts = sorted({max(1, round(share * deepest)) for share in KEPT})
        return tuple(_with_blocks(best, tuple(range(count))) for count in counts)

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[list[Assignment | None], State]:
        """A fitting share by what its class has learnt, on blocks drawn for the client and round."""
        deepest = int(offers.cut.max())
        given: list[Assignment | None] = []
        for place, client in enumerate(cohort.client_ids.tolist()):
            fitting = np.flatnonzero(offers.fits[:, place])
            if not len(fitting):
                given.append(None)
                continue
            random = generator(cohort.seed, "droppeft", cohort.round, client)
            entry = offers.menu[self._row(str(cohort.device_class[place]), fitting, offers, state, random)]
            blocks = np.sort(random.permutation(deepest)[: entry.cut]).tolist()
            given.append(_with_blocks(entry, tuple(blocks)))
        return given, state

    def _row(self, kind: str, fitting: Any, offers: Offers, state: State, random: np.random.Generator) -> int:
        tries, gains = state.get("tries", {}), state.get("gains", {})
        names = [f"{kind}/{offers.menu[row].cut}" for row in fitting]
        untried = [row for row, name in zip(fitting, names, strict=True) if not tries.get(name)]
        if untried:
            return int(untried[-1])
        if random.random() < self._explore:
            return int(random.choice(fitting))
        means = [gains[name] / tries[name] for name in names]
        return int(fitting[int(np.argmax(means))])

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """What each finished client's loss fell a virtual second, added to its class and share."""
        tries, gains = dict(state.get("tries", {})), dict(state.get("gains", {}))
        losses = dict(state.get("losses", {}))
        for row in records:
            if row["outcome"] != "ok" or row["loss"] is None:
                continue
            client = str(row["client_id"])
            name = f"{row['device_class']}/{len(Assignment.from_json(row['assignment']).blocks)}"
            before = losses.get(client, row["loss"])
            tries[name] = tries.get(name, 0) + 1
            gains[name] = gains.get(name, 0.0) + (before - row["loss"]) / row["virtual_seconds"]
            losses[client] = row["loss"]
        return {"tries": tries, "gains": gains, "losses": losses}


def _with_blocks(entry: Assignment, blocks: tuple[int, ...]) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    adapter = replace(entry.adapter, ranks=(entry.max_rank,) * len(blocks))
    return replace(entry, blocks=blocks, adapter=adapter, exits=())
