"""A policy in ten lines: the deepest adapter that fits, but for the slow half only what is quick."""

import numpy as np

from fedray.cost import Ints
from fedray.policy import Cohort, Offers


def assign(cohort: Cohort, offers: Offers, *, patience: float = 2.0) -> Ints:
    """One menu index per client, -1 to leave it out; patience in multiples of the median time."""
    quickest = np.where(offers.fits, offers.virtual_seconds, np.inf).min(axis=0)
    limit = patience * np.median(quickest[np.isfinite(quickest)])
    in_time = offers.virtual_seconds <= np.maximum(limit, quickest)
    return offers.best(offers.sum_of_ranks, among=in_time)
