"""Every client trains as much as fits it and is done in time.

FedCS (1804.08333) chooses clients by a deadline; here the work is chosen, and every client takes part if it
can. Published numbers are not checked.
"""

from fedray.cost import Ints
from fedray.policy import Cohort, Offers

RUNG = "laws"


def assign(cohort: Cohort, offers: Offers, *, deadline_seconds: float, leave_out: bool = False) -> Ints:
    """One menu index per client, -1 where it is left out.

    Args:
        cohort: the round's clients.
        offers: what fits them.
        deadline_seconds: virtual seconds from the round's start until the update must have arrived.
        leave_out: leave out a client that cannot make it; otherwise it gets its fastest offer.
    """
    in_time = offers.best(offers.sum_of_ranks, among=offers.virtual_seconds <= deadline_seconds)
    if leave_out:
        return in_time
    fastest = offers.best(-offers.virtual_seconds)
    in_time[in_time < 0] = fastest[in_time < 0]
    return in_time
