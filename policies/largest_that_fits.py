"""Every client trains as much as fits it: the largest sum of ranks, and the fastest of equals.

The memory-fit setting of FlexLoRA (2402.11505) and FLoRA (2409.05976), over every knob of the menu and not
the rank alone. Published numbers are not checked.
"""

from fedray.cost import Ints
from fedray.policy import Cohort, Offers

RUNG = "laws"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """One menu index per client, -1 where nothing fits."""
    return offers.best(offers.sum_of_ranks)
