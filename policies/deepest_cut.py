"""Every client keeps as many blocks as fit it, and the server runs the others; or as few as there are.

What a memory ceiling alone decides, as client depth by capacity in MemEff-SFL (2506.02940): without one, and
without a queue at the server, the fastest cut lies at an end anyway. That paper's order of processing at the
server is not reproduced, and its numbers are not checked.
"""

from typing import Literal

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "laws"


def assign(cohort: Cohort, offers: Offers, *, prefer: Literal["deepest", "shallowest"] = "deepest") -> Ints:
    """One menu index per client, -1 where nothing fits; of equal depths the largest ranks, then the fastest.

    Args:
        cohort: the round's clients.
        offers: what fits them.
        prefer: most of the client's own blocks, the whole model where it fits; or fewest, down to none.

    Raises:
        PolicyError: the menu has no cut, or ``prefer`` is neither.
    """
    if prefer not in ("deepest", "shallowest"):
        raise PolicyError(f"deepest_cut: prefer is deepest or shallowest; found {prefer!r}.")
    offers.need_cuts("deepest_cut")
    depth = offers.num_own_blocks if prefer == "deepest" else -offers.num_own_blocks
    return offers.best(depth * (offers.sum_of_ranks.max() + 1) + offers.sum_of_ranks)
