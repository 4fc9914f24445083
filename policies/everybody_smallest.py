"""Everybody trains the same: the largest assignment that fits every client of the round.

The baseline AllSmall of FedRA (2311.11227); DepthFL (ICLR 2023) calls it exclusive smallest. A client that
nothing fits is left out. If no entry fits all others, the entry that fits most of them is given, and the rest
are left out. Published numbers are not checked.
"""

import numpy as np

from fedray.cost import Ints
from fedray.policy import LEAVE_OUT, Cohort, Offers

RUNG = "laws"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The same menu index for every client it fits, -1 for the others."""
    takers = offers.fits.sum(axis=1)
    size = np.where(takers == takers.max(), offers.sum_of_ranks, -1)
    # Of equally large entries the one whose slowest client is done first: the round waits for that client.
    slowest = np.where(offers.fits, offers.virtual_seconds, 0.0).max(axis=1)
    entry = int(np.lexsort((slowest, -size))[0])
    return np.where(offers.fits[entry], entry, LEAVE_OUT)
