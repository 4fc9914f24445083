"""Fed-piLot-style: who trains how much is a knapsack, solved exactly, under a budget that clients share.

Read were summaries, in which LoRA is placed by a knapsack over what a device's memory holds. Built: one offer
or none for each client of a round, so that the sum of what they train is largest while all their messages
together stay within a budget of bytes and, if asked, everybody within a deadline; an integer program of
scipy's. What an offer is worth is its number of trained parameters times the root of the client's rows; the
paper's worth, from gradients, was not checked.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import LEAVE_OUT, Cohort, Offers

RUNG = "laws"


class FedPilot:
    """The best choice of offers under a shared budget."""

    def __init__(self, *, budget_share: float = 0.5, deadline_seconds: float | None = None) -> None:
        """Args: ``budget_share``: of the bytes that everybody's largest fitting offers would take together.

        ``deadline_seconds``: offers that take longer are none.
        """
        if not 0 < budget_share <= 1:
            raise PolicyError(f"fedpilot_style: budget_share is above 0 and at most 1, found {budget_share}.")
        self._share, self._deadline = budget_share, deadline_seconds

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """One menu index per client, -1 for who is worth less than it takes."""
        open_to = offers.fits
        if self._deadline is not None:
            open_to = open_to & (offers.virtual_seconds <= self._deadline)
        entry, client = np.nonzero(open_to)
        choice: Ints = np.full(len(cohort), LEAVE_OUT, np.int64)
        if not len(entry):
            return choice
        size = 1.0 + np.array([own.sum_of_ranks + own.num_trained_blocks for own in offers.menu])[entry]
        worth = size * np.sqrt(cohort.num_rows[client])
        takes = (offers.up_bytes + offers.down_bytes)[entry, client].astype(np.float64)
        most = np.zeros(len(cohort))
        np.maximum.at(most, client, takes)
        taken = self._solved(worth, takes, client, self._share * most.sum())
        choice[client[taken]] = entry[taken]
        return choice

    def _solved(self, worth: np.ndarray, takes: np.ndarray, client: Ints, budget: float) -> Ints:
        """Places of the offers that are taken."""
        count = len(worth)
        one_each = coo_array((np.ones(count), (client, np.arange(count))), shape=(client.max() + 1, count))
        found = milp(
            -worth / worth.max(),
            constraints=[
                LinearConstraint(one_each.tocsr(), ub=1.0),
                LinearConstraint(takes[None], ub=budget),
            ],
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
        )
        return np.flatnonzero(found.x > 0.5) if found.x is not None else np.zeros(0, np.int64)
