"""RaFFM-style (2310.00247): each client trains all weights of the most salient part that it can hold.

Read was the abstract, and what others say of it: heads and neurons are put in order by the size of their
pretrained weights, so that the important ones survive a slice, and each client trains and keeps the slice
that suits its device. Built: the widest part that fits, of entries whose units are chosen by salience
(``menu.width_window: salient``, measured once), averaged over who holds it, all alike (``coverage_mean``).
Not built: the paper's search among subnetworks of unlike shapes for one budget, which is the menu's here, and
weights that are moved about, in whose place parts know their places.
"""

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "laws"
PAPER = "2310.00247"

aggregation = "coverage_mean"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The widest part that fits, of the entries that train everything they hold."""
    whole = [entry.trains_all_it_holds for entry in offers.menu]
    widths = [entry.width for own, entry in zip(whole, offers.menu, strict=True) if own]
    if not any(width is not None and width.window == "salient" for width in widths):
        raise PolicyError(
            "raffm_style trains all weights of the most salient parts of the model, and the menu has none; "
            "give menu.tunings: [full], depths: [all], menu.widths, such as [1, 0.5, 0.25], and "
            "width_window: salient."
        )
    shares = np.array([1.0 if entry.width is None else entry.width.share for entry in offers.menu])
    return offers.best(shares, among=offers.each(whole))
