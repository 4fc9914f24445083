"""FjORD (NeurIPS 2021): the widest part that a device can hold, and in every step a smaller one drawn of it.

Reproduced, after the code that authors of the paper published as a baseline of Flower: some widths p, each
the leading ``ceil(p n)`` of n units, so that smaller parts lie in larger ones; a client trains, in each local
step, a width drawn uniformly among those up to the largest it can hold; the server averages each part over
the clients that may hold it, weighed by their rows (the aggregation ``factor_mean``, which averages weights
over who holds what). Widths are the menu's, of feed-forward units and heads.

Left out: distillation from the widest to the drawn width, which the paper has as an option; and batch norm
for each width, which no transformer has. A step of a smaller width is charged like one of the widest: what a
device would save is not counted. The published accuracies are not checked.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View
from fedray.width import OrderedDropout, Width

RUNG = "definition"
PAPER = "NeurIPS 2021"
CHECKS = ("../tests/policies/test_fjord.py", "../tests/training/test_ordered.py")


class Fjord:
    """The menu's parts with the smaller ones to draw from, and for each client the widest that fits."""

    aggregation = "factor_mean"

    def menu(self, view: View) -> Sequence[Assignment]:
        """The entries that train everything they hold; all but the narrowest with ordered dropout."""
        whole = [entry for entry in view.menu if entry.trains_all_it_holds]
        widths = {entry.width for entry in whole if entry.width is not None}
        if not widths:
            raise PolicyError(
                "fjord trains all weights of narrower models, and the menu has none; give menu.tunings: "
                "[full], depths: [all] and menu.widths, such as [1, 0.8, 0.6, 0.4, 0.2]."
            )
        return tuple(_drawing(entry, widths) for entry in whole)

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The widest part that fits."""
        return offers.best(np.array([_share(entry) for entry in offers.menu]))


def _drawing(entry: Assignment, widths: set[Width]) -> Assignment:
    smaller = tuple(sorted(width.share for width in widths if width.share < _share(entry)))
    if not smaller:
        return entry
    return replace(entry, ordered=OrderedDropout(shares=smaller, axes=next(iter(widths)).axes))


def _share(entry: Assignment) -> float:
    return 1.0 if entry.width is None else entry.width.share
