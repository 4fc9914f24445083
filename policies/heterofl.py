"""HeteroFL (2010.01264): each client trains all weights of the widest leading part that it can hold.

Reproduced, after the official code: of n units the first ``ceil(rate n)``, so that smaller parts lie in
larger ones, queries, keys and values cut within each head; each entry is averaged over the clients that hold
it, all alike, and an entry that nobody holds stays what it was (the aggregation ``coverage_mean``). Rates and
axes are the menu's: the paper has 1, 1/2, 1/4, 1/8 and 1/16 of the hidden width, and inside each head.

Left out: the scaler, which divides by the rate in training, for a part is an ordinary model here whose norms
run over the units that it keeps; batch norm without statistics, which no transformer has; the mask over
labels that a client lacks; and rates drawn anew each round, for here devices decide. The published accuracies
are not checked. DepthFL (ICLR 2023) reports that training the smallest model alone can be better: compare
with ``everybody_smallest``.
"""

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "definition"
PAPER = "2010.01264"
CHECKS = ("../tests/policies/test_widths.py", "../tests/test_width.py", "../tests/model/test_slices.py")

aggregation = "coverage_mean"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The widest part that fits, of the entries that train everything they hold."""
    whole = [entry.trains_all_it_holds for entry in offers.menu]
    if not any(own and entry.width is not None for own, entry in zip(whole, offers.menu, strict=True)):
        raise PolicyError(
            "heterofl trains all weights of narrower models, and the menu has none; give menu.tunings: "
            "[full], depths: [all] and menu.widths, such as [1, 0.5, 0.25]."
        )
    shares = np.array([1.0 if entry.width is None else entry.width.share for entry in offers.menu])
    return offers.best(shares, among=offers.each(whole))
