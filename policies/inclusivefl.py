"""InclusiveFL (2202.08036): each client trains as many leading blocks as it can hold, with one head behind.

Reproduced: one head for each depth (``menu.exits``) and the model's last one for who holds all; blocks are
averaged over the clients that hold them, heads over those of a depth, all alike; and momentum distillation:
the last block of shallower clients learns what the blocks above it learnt in the round before, weighed 0.2
(the aggregation ``inclusivefl``, which says what it is). The paper's full text was not checked: this is what
the authors of FedRA re-implemented. Left out: their fixed size per client, for devices decide here. Published
accuracies are not checked.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "definition"
PAPER = "2202.08036"
CHECKS = ("../tests/policies/test_inclusivefl.py", "../tests/aggregation/test_inclusive.py")


class InclusiveFL:
    """The deepest offer that fits, and of equally deep ones that with most ranks."""

    aggregation = "inclusivefl"

    def menu(self, view: View) -> Sequence[Assignment]:
        """The entries with exits, each with one head alone: that of its whole depth."""
        with_exits = [entry for entry in view.menu if entry.exits]
        if not with_exits:
            raise PolicyError(
                "inclusivefl gives clients some leading blocks with a head of that depth, and the menu has "
                "none; give menu.exits, such as [2, 4]."
            )
        return tuple(replace(e, exits=(e.cut,) if e.exits[-1] == e.cut else ()) for e in with_exits)

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """One menu index per client, -1 where nothing fits."""
        return offers.best(offers.cut + offers.sum_of_ranks / (1 + np.max(offers.sum_of_ranks)))
