"""DepthFL (ICLR 2023): each client trains as many leading blocks as it can hold, with a head at every exit.

Reproduced, after the code that an author of the paper published as a baseline of Flower: a head behind each
of some depths (``menu.exits``) and behind the whole model; a client of a depth trains the heads of all exits
up to it, by the sum of their losses and, as a local rule, by what they learn from each other: KL divergences
over the other heads' answers, which are given no gradient, divided by the number of these, with a weight that
rises over 300 rounds as ``exp(-5 (1 - t / 300)^2)`` (``training.exit_distillation`` and its ramp). What
clients hold parts of is averaged over who holds it, all alike (the aggregation ``coverage_mean``).

Left out: FedDyn's correction on clients and server, which that code adds; the ensemble of all heads as the
global model, for the last head alone is evaluated; and bottlenecks before the heads: one reads what the last
head does, through the model's final norm. The published accuracies are not checked.
"""

from typing import ClassVar

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "definition"
PAPER = "ICLR 2023"
CHECKS = ("../tests/policies/test_depthfl.py", "../tests/training/test_exits.py")


class DepthFL:
    """The deepest offer that fits, and of equally deep ones that with most ranks."""

    aggregation = "coverage_mean"
    local_rules: ClassVar = {"exit_distillation": 1.0}

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """One menu index per client, -1 where nothing fits."""
        among = [bool(entry.exits) for entry in offers.menu]
        if not any(among):
            raise PolicyError(
                "depthfl gives clients some leading blocks with heads of their own, and the menu has none; "
                "give menu.exits, such as [2, 4]."
            )
        ranks = offers.sum_of_ranks / (1 + np.max(offers.sum_of_ranks))
        return offers.best(offers.cut + ranks, among=offers.each(among))
