"""FedRolex (2212.01548): as HeteroFL, with a window that moves on by one unit in every round.

Reproduced, after the official code: of n units those at ``roll(arange(n), round)[:ceil(rate n)]``, in every
layer alike, so that after n rounds each unit has been trained as often as any other; each entry averaged over
who holds it, all alike (the aggregation ``coverage_mean``). A part that moves must reach its clients anew
every round, and their offers pay for what of it is frozen; here all is trained, and comes with the state.
Result: in whole runs every unit has been trained equally often after a turn, and HeteroFL's prefix leaves
some to the widest clients alone, which is the paper's case for rolling; its accuracies are not reproduced.

Not copied: a reshuffle in every round but each 512th, where the reverse is meant. Rotary heads cannot roll
inside, so for Llama-like models the axis is heads, not head_dim. Left out: weights by width or by updates,
which the code offers beside the plain mean. The published accuracies are not checked.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State, View

RUNG = "result"
PAPER = "2212.01548"
CHECKS = ("../tests/policies/test_widths.py", "../tests/test_width.py")


class FedRolex:
    """Moves the menu's parts, and gives each client the widest that fits."""

    aggregation = "coverage_mean"

    def menu(self, view: View) -> Sequence[Assignment]:
        """The entries that train everything they hold, narrower ones moved to this round's window."""
        whole = [entry for entry in view.menu if entry.trains_all_it_holds]
        if all(entry.width is None for entry in whole):
            raise PolicyError(
                "fedrolex trains all weights of narrower models, and the menu has none; give menu.tunings: "
                "[full], depths: [all] and menu.widths, such as [1, 0.5, 0.25]."
            )
        still = [entry.width for entry in whole if entry.width and entry.width.window != "prefix"]
        if still:
            raise PolicyError(
                f"fedrolex moves its parts itself, and the menu has a width {still[0]}; drop "
                "menu.width_window, or choose raffm_style."
            )
        return tuple(_moved(entry, view.round) for entry in whole)

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """The widest part that fits."""
        shares = np.array([1.0 if entry.width is None else entry.width.share for entry in offers.menu])
        return offers.best(shares), state


def _moved(entry: Assignment, turn: int) -> Assignment:
    if entry.width is None:
        return entry
    return replace(entry, width=replace(entry.width, window="rolling", turn=turn))
