"""Who would wait for the slowest does more local work instead: PyramidFL's use of idle time (MobiCom'22).

Everybody is given the largest offer that fits, and as many more epochs of it, ``most_extra`` at most, as
leave it in time for the slowest of the round. With t_k the seconds of a trip of E epochs, t_comp those it
computes and T the slowest's, that is the published

    epochs = E + min(most_extra, floor((T - t_k) / (t_comp / E)))

read from the prices of the longer work. Whom it goes with is the selection `pyramidfl_style`. Left out:
dropping parts of uploads by rank of utility. The paper's full text was not read, its numbers are not checked.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "laws"


class FillIdleTime:
    """It keeps nothing from round to round."""

    def __init__(self, *, most_extra: int = 10) -> None:
        """Args: ``most_extra`` epochs. Raises PolicyError for less than 1."""
        if most_extra < 1:
            raise PolicyError(f"fill_idle_time: most_extra is 1 epoch or more, found {most_extra}.")
        self._most_extra = most_extra

    def menu(self, view: View) -> Sequence[Assignment]:
        """Every entry with its epochs, then all of them with one more, and so on."""
        if any(entry.max_steps is not None for entry in view.menu):
            raise PolicyError(
                "fill_idle_time gives clients more epochs, and training.max_steps fixes their steps; drop it."
            )
        return [
            replace(entry, num_epochs=entry.num_epochs + extra)
            for extra in range(self._most_extra + 1)
            for entry in view.menu
        ]

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """One menu index per client, -1 where nothing fits."""
        size = len(offers.menu) // (self._most_extra + 1)
        own, extra = np.arange(len(offers.menu)) % size, np.arange(len(offers.menu)) // size
        base = offers.best(offers.sum_of_ranks, among=offers.each(extra == 0))
        seconds = offers.seconds_of(base)
        slowest = seconds[np.isfinite(seconds)].max(initial=0.0)
        longer = (own[:, None] == base) & (offers.virtual_seconds <= slowest)
        return offers.best(extra, among=longer)
