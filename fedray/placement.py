"""Which work goes out first: the longest, by wall seconds that are learned from work that is back.

Whoever is free takes the longest of what waits (list scheduling, longest first). If predictions are right it
ends within 4/3 - 1/(3m) of the least that m workers could need (Graham, 1969). Nothing that a run computes
depends on it.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fedray.cost import Floats

# What was measured long ago says little of a machine that others use, too.
_REMEMBERED = 256
# A line through fewer points would follow the first ones, which open files and compile kernels.
_ENOUGH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What of a piece of work takes wall time.

    Attributes:
        kind: work of one kind takes time alike.
        passes: walks through a block one after the other, whatever is in them.
        work: what is in them, such as tokens times blocks.
    """

    kind: str
    passes: float
    work: float


class WallSeconds:
    """Wall seconds of work of each kind as a line in its load, fitted to what was last measured.

    The line has no negative coefficient, so a larger load never takes less. Errors are weighed in shares of
    what was measured: short work counts as long does, and one that a busy machine held up counts little.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._measured: dict[str, deque[tuple[float, float, float]]] = {}

    def learn(self, load: Load, seconds: float) -> None:
        """Work is back after so many wall seconds of its worker, above 0."""
        kept = self._measured.setdefault(load.kind, deque(maxlen=_REMEMBERED))
        kept.append((load.passes, load.work, max(seconds, 1e-9)))

    def predicted(self, loads: Sequence[Load]) -> Floats | None:
        """Wall seconds of each, [loads]; None as long as too little of one of their kinds is back."""
        lines = {}
        for kind in {load.kind for load in loads}:
            measured = self._measured.get(kind, ())
            if len(measured) < _ENOUGH:
                return None
            lines[kind] = _line(np.array(measured))
        return np.array([lines[load.kind] @ (1.0, load.passes, load.work) for load in loads])

    def lengths(self, loads: Sequence[Load]) -> Floats:
        """How long each takes beside the others, [loads]: predicted, and by its work until that is known."""
        seconds = self.predicted(loads)
        return np.array([load.work for load in loads], np.float64) if seconds is None else seconds


def _line(measured: Floats) -> Floats:
    """Seconds at no load, of a pass and of a unit of work, from passes, work and seconds, [measured, 3]."""
    seconds = measured[:, 2]
    columns = np.column_stack([np.ones(len(measured)), measured[:, :2]])
    sizes = np.maximum(columns.max(axis=0), 1e-300)
    found, _ = nnls(columns / sizes / seconds[:, None], np.ones(len(measured)))
    line: Floats = found / sizes
    return line


def longest_first(lengths: Floats, near: int) -> list[int]:
    """The places of work in the order in which it goes out.

    Of work that is near each other the longest goes first. Only near, since an answer is kept until those
    before it are there; the last group is a whole one, so that the end is even.

    Args:
        lengths: of each, in the order in which answers are wanted, [work].
        near: how many are near each other.
    """
    behind = len(lengths) % near
    return sorted(range(len(lengths)), key=lambda place: ((place - behind) // near, -lengths[place], place))


def shared_out(lengths: Sequence[float], num_workers: int) -> list[int]:
    """The worker of each piece of work: the longest first, each to whoever has least so far, [work]."""
    free = [(0.0, worker) for worker in range(num_workers)]
    worker_of = [0] * len(lengths)
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        busy, worker = heapq.heappop(free)
        worker_of[place] = worker
        heapq.heappush(free, (busy + lengths[place], worker))
    return worker_of
