"""HSplitLoRA-style (2505.02795): cut and ranks together under each client's memory, most for what matters.

From the paper's summary: weights are ranked by a resource-normalised product of gradient and weight, mixed
with its history; important ones get more rank; the cut follows from the importance that fits a client's
budget; and the split is redone only when importance moved by more than a threshold. Our reading:

- Importance is a block's, not a weight's: the observable ``salience``, the sum of |weight * gradient| of its
adapter, per step and per unit of the rank it had. Clients report the blocks that they train themselves; one
of which nobody told anything counts as the mean of the others, so all are equal in round 1. - For every cut
of the menu the policy offers assignments of its own: on the client's blocks ranks from one level (0, or one
of the menu's ranks) to the next, the most important blocks first; on the server's blocks the largest, since
the server is not the one short of memory. They are priced like any other. - Of those that fit, a client gets
the one with the largest sum of importance * rank over its own blocks.

Left out: aggregation by stacking and starting again from new factors, which moves frozen weights that the
server holds. The paper's full text was not read, its numbers are not checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Floats, Ints
from fedray.errors import ConfigError, PolicyError
from fedray.policy import Cohort, Offers, State, View

RUNG = "laws"
PAPER = "2505.02795"


class HSplitLora:
    """Its state has ``importance``, as known now, and ``settled``, what the menu was made from: [blocks]."""

    observables = ("salience",)

    def __init__(self, *, history: float = 0.5, threshold: float = 0.2, levels: int = 2) -> None:
        """Set what is weighed.

        Args:
            history: share of what was known before in a block's importance, 0 to below 1.
            threshold: the split is redone once a block's importance moved by more, in shares of the mean.
            levels: steps from one rank to the next, in each of which more blocks have the larger one.
        """
        if not 0 <= history < 1 or threshold < 0 or levels < 1:
            raise PolicyError(
                "hsplitlora_style: history is 0 to below 1, threshold 0 or more and levels 1 or more; "
                f"found {history}, {threshold} and {levels}."
            )
        self._history, self._threshold, self._levels = history, threshold, levels

    def menu(self, view: View) -> list[Assignment]:
        """The configuration's knobs with ranks by importance.

        The state follows from the records alone, so what a checkpoint lacks is worked out again.
        """
        state: State = {}
        for _, records in groupby(view.history, key=lambda record: record["round"]):
            state = self.observe(list(records), state)
        adapters = [entry.adapter for entry in view.menu if isinstance(entry.adapter, Lora)]
        if not adapters or not any(entry.split for entry in view.menu):
            raise PolicyError(
                f"hsplitlora_style chooses cuts and LoRA ranks, and of the menu's {len(view.menu)} "
                "assignments none has a cut or none has ranks; give menu.cuts and menu.ranks."
            )
        importance = _settled(state, max(len(adapter.ranks) for adapter in adapters))
        levels = sorted({0} | {rank for adapter in adapters for rank in adapter.ranks})
        found: dict[Assignment, None] = {}
        for entry in view.menu:
            if isinstance(entry.adapter, Lora):
                for ranks in self._ranks(entry, levels, importance):
                    found.update(dict.fromkeys(_with_ranks(entry, ranks)))
        return list(found)

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """The offer with most importance in the client's own ranks, and the fastest of equals."""
        offers.need_cuts("hsplitlora_style")
        values = []
        for entry in offers.menu:
            ranks = np.array(entry.adapter.ranks if isinstance(entry.adapter, Lora) else ())
            own = list(entry.client_blocks(len(ranks))) if entry.split else list(entry.blocks)
            values.append(float((ranks * _settled(state, len(ranks)))[own].sum()))
        return offers.best(np.array(values)), state

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Mix what a round's clients told of each block into its importance, and settle it if it moved."""
        told = [_told(record) for record in records if record["statistics"]]
        if not told:
            return state
        now = _means(np.stack(told))
        before = state.get("importance", now)
        mixed = self._history * before + (1 - self._history) * now
        known = np.where(np.isnan(before), now, np.where(np.isnan(now), before, mixed))
        old, new = state.get("settled"), _filled(known)
        moved = old is None or float(np.abs(new - _filled(old)).max(initial=0.0)) > self._threshold
        return {"importance": known, "settled": known if moved else old}

    def _ranks(self, entry: Assignment, levels: list[int], importance: Floats) -> Iterator[tuple[int, ...]]:
        """Ranks of every block, small to large over the client's own."""
        count = len(importance)
        own = np.array(entry.client_blocks(count) if entry.split else entry.blocks, np.int64)
        best_first = own[np.argsort(-importance[own], kind="stable")]
        for lower, upper in pairwise(levels):
            for raised in np.unique(np.linspace(0, len(own), self._levels + 1).round().astype(int)):
                ranks = np.full(count, levels[-1])
                ranks[own] = lower
                ranks[best_first[:raised]] = upper
                yield tuple(ranks.tolist())


def _with_ranks(entry: Assignment, ranks: tuple[int, ...]) -> list[Assignment]:
    """The entry with these ranks; nothing if an assignment refuses them: none to train, or to recompute."""
    assert isinstance(entry.adapter, Lora)
    try:
        return [replace(entry, adapter=replace(entry.adapter, ranks=ranks))]
    except ConfigError:
        return []


def _settled(state: State, num_blocks: int) -> Floats:
    return _filled(state["settled"]) if "settled" in state else np.ones(num_blocks)


def _filled(known: Floats) -> Floats:
    """In shares of the mean, which stands for what is not known."""
    mean = np.nanmean(known) if not np.isnan(known).all() else 0.0
    return np.where(np.isnan(known), 1.0, known / mean) if mean > 0 else np.ones(len(known))


def _means(told: Floats) -> Floats:
    """Of each block over those that told something of it, [clients, blocks] to [blocks]."""
    counts = (~np.isnan(told)).sum(axis=0)
    return np.where(counts > 0, np.nansum(told, axis=0) / np.maximum(counts, 1), np.nan)


def _told(record: Mapping[str, Any]) -> Floats:
    """A client's salience per step and unit of rank, [blocks]; not a number where it trained nothing."""
    salience: Floats = record["statistics"]["salience"]
    ranks = np.maximum(_ranks_of(record["assignment"]), 1)
    each: Floats = salience / (ranks * max(record["num_steps"], 1))
    return each


@lru_cache(maxsize=4096)
def _ranks_of(assignment: str) -> Ints:
    adapter = Assignment.from_json(assignment).adapter
    assert isinstance(adapter, Lora)
    return np.array(adapter.ranks)
