"""SplitFT-style (2604.26388): each client's cut from its resources and its loss, a lower rank at the cut.

From the paper's summary: cuts differ by clients' computation resources and by how well the model does for
them, and the block at the cut has a lower LoRA rank, which saves bytes. Our reading:

- Resources: the most own blocks that fit and are done within ``patience`` times the median client's quickest
cut, by predicted seconds; the quickest one for whom none is. Whole models are not given. - Loss: a client
whose last loss is above the mean of the round's known ones by more than ``margin`` of it keeps one step of
cuts more than that, where it fits, so that more of what it trains is its own; one below by as much keeps one
step less. A client without a loss keeps what its resources say. - The block at the cut is the client's last
one below it. Its rank is multiplied by ``cut_rank_share``, rounded down and at least 1; a block that is not
trained stays frozen.

Left out: dividing rows by length, which is the data's matter. The paper's full text was not read, its numbers
are not checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.policy import LEAVE_OUT, Cohort, Offers, State

RUNG = "laws"
PAPER = "2604.26388"


class SplitFt:
    """Its state has ``losses``: each client's last one, by id."""

    def __init__(self, *, patience: float = 2.0, margin: float = 0.1, cut_rank_share: float = 0.5) -> None:
        """Set how cuts and ranks follow (see the module)."""
        if not patience > 0 or margin < 0 or not 0 < cut_rank_share <= 1:
            raise PolicyError(
                "splitft_style: patience is above 0, margin 0 or more and cut_rank_share above 0 to 1; "
                f"found {patience}, {margin} and {cut_rank_share}."
            )
        self._patience, self._margin, self._share = patience, margin, cut_rank_share

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[list[Assignment | None], State]:
        """Assignments of the menu, but for the rank at the cut; None where no cut fits."""
        offers.need_cuts("splitft_style")
        depths = np.unique(offers.num_own_blocks[offers.has_cut])
        rows = np.stack([self._at_depth(offers, depth) for depth in depths.tolist()])  # [depths, clients]
        clients = np.arange(len(cohort))
        fits = rows != LEAVE_OUT
        seconds = np.where(fits, offers.virtual_seconds[rows, clients], np.inf)
        quickest = seconds.min(axis=0)
        limit = self._patience * np.median(quickest[np.isfinite(quickest)]) if fits.any() else 0.0
        in_time = fits & (seconds <= np.maximum(limit, quickest))
        place = len(depths) - 1 - in_time[::-1].argmax(axis=0)
        losses = state.get("losses", {})
        known = [losses.get(client_id, np.nan) for client_id in cohort.client_ids.tolist()]
        choice = [
            _stepped(fits[:, k], int(place[k]), step)
            for k, step in enumerate(self._steps(np.array(known)).tolist())
        ]
        given = [None if row == LEAVE_OUT else offers.menu[row] for row in rows[choice, clients].tolist()]
        return [None if entry is None else self._thinned(entry) for entry in given], state

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Keep the losses of those who trained."""
        told = {record["client_id"]: record["loss"] for record in records if record["loss"] is not None}
        return {"losses": {**state.get("losses", {}), **told}}

    def _at_depth(self, offers: Offers, depth: int) -> Ints:
        own = offers.has_cut & (offers.num_own_blocks == depth)
        return offers.best(offers.sum_of_ranks, among=own[:, None])

    def _steps(self, losses: Floats) -> Ints:
        """1 for one step deeper, -1 for one shallower, [clients]; not a number has no say."""
        known = losses[np.isfinite(losses)]
        if not len(known):
            return np.zeros(len(losses), np.int64)
        mean = known.mean()
        high, low = losses > mean * (1 + self._margin), losses < mean * (1 - self._margin)
        steps: Ints = high.astype(np.int64) - low
        return steps

    def _thinned(self, entry: Assignment) -> Assignment:
        if not isinstance(entry.adapter, Lora) or not entry.cut:
            return entry
        ranks = list(entry.adapter.ranks)
        at_cut = entry.cut - 1
        ranks[at_cut] = max(int(ranks[at_cut] * self._share), min(ranks[at_cut], 1))
        return replace(entry, adapter=replace(entry.adapter, ranks=tuple(ranks)))


def _stepped(fits: np.ndarray[Any, Any], place: int, step: int) -> int:
    """The next depth that fits in the step's direction; the place itself where there is none."""
    others = np.flatnonzero(fits)
    beyond = others[others > place] if step > 0 else others[others < place]
    if not step or not len(beyond):
        return place
    return int(beyond.min() if step > 0 else beyond.max())
