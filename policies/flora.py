"""FLoRA (2409.05976): each client trains the largest rank it can hold; the server stacks and starts anew.

Reproduced, after the official code: LoRA on all blocks with one alpha / r for all; the server's stack of all
clients' factors, weighed by rows, which is the mean of the products exactly for any ranks, added to the
frozen model; fresh factors for everybody in every round (the aggregation ``flora``). The stack goes down to
every client, one of rank 4 too, and its bytes are on everybody's downlink. Not copied: the code needs one
scale for all clients, and tells A from B by shape. Left out: its ten clients' ranks 64 to 4, for here devices
decide. Our choice: where no rank fits on all blocks, the most blocks that do. The published accuracies are
not checked.
"""

from fedray.assignment import Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "definition"
PAPER = "2409.05976"
CHECKS = ("../tests/policies/test_largest_ranks.py", "../tests/aggregation/test_stack.py")

aggregation = "flora"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The most trained blocks, and of those the largest rank; of whole models, into which one can merge."""
    merges = [isinstance(entry.adapter, Lora) and not entry.split for entry in offers.menu]
    if not any(merges):
        raise PolicyError(
            f"flora merges LoRA factors into whole models, and none of the menu's {len(merges)} assignments "
            "trains some there; give menu.ranks."
        )
    depths = [entry.num_trained_blocks for entry in offers.menu]
    order = offers.in_order(depths, [entry.max_rank for entry in offers.menu])
    return offers.best(order, among=offers.each(merges))
