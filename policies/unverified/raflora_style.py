"""raFLoRA-style (2602.13486): FlexLoRA whose server weighs each rank over the clients that have it.

Read was the abstract: under FlexLoRA what lies beyond the smallest shared rank decays from round to round,
and weights that are partitioned by rank mend that. Built: the largest rank that fits, on the most blocks, as
the policy ``flexlora`` has it; the server's sum of products rank by rank, each over its own holders (the
aggregation ``raflora``, which says which laws it breaks). On seven clients of rank 2 and one of rank 16 with
a linear target of rank 16 the decay is gone: a relative error of 0.03 where FlexLoRA stalls at 0.79, and 0.79
of the energy beyond rank 2 where the target has 0.80 and FlexLoRA 0.06. Not built: whatever else the paper's
partitions weigh; its figures are not checked.
"""

from fedray.assignment import Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "laws"
PAPER = "2602.13486"

aggregation = "raflora"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The most blocks of one's own, then of trained ones, then the largest rank."""
    has_ranks = [isinstance(entry.adapter, Lora) for entry in offers.menu]
    if not any(has_ranks):
        raise PolicyError("raflora_style gives clients LoRA ranks, and the menu has none; give menu.ranks.")
    depths = [entry.num_trained_blocks for entry in offers.menu]
    order = offers.in_order(offers.cut, depths, [entry.max_rank for entry in offers.menu])
    return offers.best(order, among=offers.each(has_ranks))
