"""ScaleFL-style (CVPR 2023): parts of the model that are narrower and shallower at once, with early exits.

Read were its official code's settings as others have noted them, not the paper: a level of a device is a
share of the width and a number of leading blocks together, with heads of their own behind the blocks; the
heads of a client learn from each other, and each entry is averaged over who holds it. Built: of the menu's
depths (``menu.exits``) and widths (``menu.widths``) the part that has the largest share of the blocks'
weights, depth times width, and of equally large ones the one nearest to both alike; every head's loss, and
what each head learns from the others as DepthFL has it, a twentieth of it; averages by coverage.
Not built: losses that weigh more the deeper their exit, and teaching by the deepest head alone, at a
temperature of 3 and from a quarter of the rounds on.
"""

from typing import ClassVar

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "laws"
PAPER = "CVPR 2023"


class ScaleFL:
    """The largest product of depth and width that fits."""

    aggregation = "coverage_mean"
    local_rules: ClassVar = {"exit_distillation": 0.05}

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """One menu index per client, -1 where nothing fits."""
        levels = [entry.trains_all_it_holds and bool(entry.exits) for entry in offers.menu]
        narrow = [entry.width is not None and own for entry, own in zip(offers.menu, levels, strict=True)]
        if not any(narrow):
            raise PolicyError(
                "scalefl_style trains all weights of parts that are narrower and shallower, and the menu has "
                "none; give menu.tunings: [full], depths: [all], exits, such as [2, 4], and widths, such as "
                "[1, 0.7]."
            )
        depths = np.array([entry.cut for entry in offers.menu]) / max(entry.cut for entry in offers.menu)
        shares = np.array([1.0 if entry.width is None else entry.width.share for entry in offers.menu])
        order = offers.in_order((depths * shares).round(9), np.minimum(depths, shares))
        return offers.best(order, among=offers.each(levels))
