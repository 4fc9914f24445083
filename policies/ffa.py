"""FFA-LoRA (2403.12313): A stays for everybody as it was drawn; clients train B alone, and B is averaged.

Reproduced: one A, drawn once and never sent; B from zero, averaged by rows, which is the mean of the products
exactly (the aggregation ``ffa_lora``); half of what LoRA trains and sends at square linears. Left out: the
differential privacy that the paper combines it with. Our choice: the paper has one rank for all, which
``rank`` asks for; without it a client trains the leading rows of A that it can hold, whose mean is as exact.
Where a rank does not fit on all blocks, the most blocks that do; with cuts on the menu, the server runs no
more blocks than it must. The published accuracies are not checked.
"""

from fedray.assignment import Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "definition"
PAPER = "2403.12313"
CHECKS = ("../tests/policies/test_largest_ranks.py", "../tests/aggregation/test_factor_mean.py")


class Ffa:
    """Its aggregation brings about a menu on which nobody trains A."""

    aggregation = "ffa_lora"

    def __init__(self, *, rank: int | None = None) -> None:
        """Args: ``rank``: of everybody, as in the paper; each client's largest if absent."""
        self._rank = rank

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The most blocks of one's own, then of trained ones, then the largest rank."""
        ranks = [entry.max_rank for entry in offers.menu]
        allowed = {rank for rank in ranks if rank} if self._rank is None else {self._rank}
        wanted = [isinstance(e.adapter, Lora) and e.max_rank in allowed for e in offers.menu]
        if not any(wanted):
            raise PolicyError(
                f"ffa trains B of rank {self._rank or '1 or more'}, and the menu's ranks are "
                f"{sorted(set(ranks) - {0})}; change menu.ranks."
            )
        order = offers.in_order(offers.cut, [entry.num_trained_blocks for entry in offers.menu], ranks)
        return offers.best(order, among=offers.each(wanted))
