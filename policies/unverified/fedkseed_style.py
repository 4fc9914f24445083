"""FedKSeed-style (2312.06353): clients never look back, and tell what they did by a number for each seed.

Read were the abstract and summaries. Built: K seeds that all clients share (an ``up_codec`` of ``seedsK``);
steps along random directions of these, from losses at both sides (``menu.perturbations``), so that a client
needs the memory of inference; and a message of K numbers, from which the server works out the update and
averages as ever. Not built: the way down, where the paper sends the K sums of all rounds to be replayed from
the pretrained weights and here the weights go; and seeds drawn with unlike chances.
"""

import numpy as np

from fedray.codec_names import num_seeds
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers

RUNG = "laws"
PAPER = "2312.06353"


def assign(cohort: Cohort, offers: Offers) -> Ints:
    """Of the forward-only entries that send seeds the one with most trained blocks that fits."""
    wanted = [num_seeds(entry.up_codec) is not None for entry in offers.menu]
    if not any(wanted):
        raise PolicyError(
            "fedkseed_style has clients without a backward pass that send a number a seed, and the menu has "
            "none; give menu.perturbations, such as [1], and menu.up_codecs, such as [seeds4096]."
        )
    blocks = np.array([entry.num_trained_blocks for entry in offers.menu])
    return offers.best(blocks, among=offers.each(wanted))
