"""FlexLoRA (2402.11505): each client trains the largest rank it can hold; the server averages products.

Reproduced, after the official code: LoRA on all blocks, of the largest rank that fits; the server's mean of
the products, weighed by rows, and for a client of rank r its singular value decomposition cut to r, with all
singular values in B (the aggregation ``flexlora``). Law L1 breaks as published: what lies beyond the smaller
ranks decays (2602.13486). Result: that decay, with seven clients of rank 2 and one of 16 on a linear target
of rank 16, where FlexLoRA stalls at a relative error of 0.79 and its best-approximation in one round holds
for any ranks; the gap to a published figure is the toy, for none was run on the paper's tasks. Left out: the
drawn mixtures of four resource types, one of them with other ranks in attention than in feed-forward layers,
for here devices decide; and one alpha for all ranks, under which a rank is a learning rate, too. Our choice:
where no rank fits on all blocks, the most blocks that do; with cuts on the menu, the server runs no more
blocks than it must. The published accuracies are not checked.
"""

from fedray.assignment import Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "result"
PAPER = "2402.11505"
CHECKS = (
    "../tests/policies/test_largest_ranks.py",
    "../tests/aggregation/test_product_svd.py",
    "../tests/aggregation/test_published_claims.py",
)

aggregation = "flexlora"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """The most blocks of one's own, then of trained ones, then the largest rank."""
    has_ranks = [isinstance(entry.adapter, Lora) for entry in offers.menu]
    if not any(has_ranks):
        raise PolicyError("flexlora gives clients LoRA ranks, and the menu has none; give menu.ranks.")
    depths = [entry.num_trained_blocks for entry in offers.menu]
    order = offers.in_order(offers.cut, depths, [entry.max_rank for entry in offers.menu])
    return offers.best(order, among=offers.each(has_ranks))
