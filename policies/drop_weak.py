"""Everybody trains the same large assignment, and clients it does not fit are left out.

What a system without per-client work does (the drop-weak-clients baseline of DepthFL, ICLR 2023): strong
clients train in full, weak ones never take part. Any policy has to beat it. Its numbers are not checked.
"""

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import LEAVE_OUT, Cohort, Offers

RUNG = "laws"


def assign(cohort: Cohort, offers: Offers, *, assignment: int | None = None, min_share: float = 0.2) -> Ints:
    """The same menu index for every client it fits, -1 for the others.

    Args:
        cohort: the round's clients.
        offers: what fits them.
        assignment: the menu index everybody is to train; the biggest entry if absent.
        min_share: if fewer clients than this share can run it, the biggest that this share can run is
            given instead; if there is none, the biggest of those that most clients can run.
    """
    if assignment is not None and not 0 <= assignment < len(offers.menu):
        raise PolicyError(
            f"drop_weak: assignment is a menu index, 0 to {len(offers.menu) - 1}; found {assignment}."
        )
    share = offers.fits.mean(axis=1)
    wanted = int(np.argmax(offers.sum_of_ranks)) if assignment is None else assignment
    enough = share >= max(min_share, 1 / len(cohort))
    if not enough[wanted]:
        reachable = enough if enough.any() else share == share.max()
        wanted = int(np.argmax(np.where(reachable, offers.sum_of_ranks, -1)))
    return np.where(offers.fits[wanted], wanted, LEAVE_OUT)
