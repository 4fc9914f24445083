"""FedQuad-style (2506.01001): LoRA on as many top blocks as fit, where need be with activations in 8 bits.

Read was the abstract: a device's LoRA depth, and the number of layers whose activations are quantised, are
chosen together and greedily, deep ones first, since quantising makes room for depth and costs time. Built:
of every LoRA entry on all blocks each depth, counted from the output, with the activations of each number of
its blocks in 8 bits; for each client the deepest that it does in the time that the middle of the cohort needs
for its own deepest, or else its quickest, and of equally deep ones that which rounds least. Each block's
factors are averaged over who trains it (``coverage_mean``). Not built: the paper's measured capacities, in
whose place are declared prices; bits other than 8.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "laws"
PAPER = "2506.01001"


class FedQuad:
    """Depth first, then as few blocks in 8 bits as let it fit."""

    aggregation = "coverage_mean"

    def __init__(self, *, percentile: float = 50.0) -> None:
        """Args: ``percentile``: of the cohort, whose time for its deepest offer is everybody's limit."""
        if not 0 <= percentile <= 100:
            raise PolicyError(f"fedquad_style: percentile is from 0 to 100, found {percentile}.")
        self._percentile = percentile

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of each whole LoRA entry on all blocks, every depth with every number of blocks in 8 bits."""
        whole = [e for e in view.menu if e.adapts_all_it_runs and not e.recompute and not e.perturbations]
        if not whole:
            raise PolicyError(
                "fedquad_style puts LoRA on the top blocks of whole models that keep their activations, and "
                "the menu has none with it on all blocks; give menu.ranks and menu.depths: [all]."
            )
        return tuple(
            dict.fromkeys(
                _of_depth(entry, depth, count)
                for entry in whole
                for depth in range(1, entry.cut + 1)
                for count in range(depth + 1)
            )
        )

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The deepest in time, and where nothing is in time the quickest."""
        depths = [entry.num_trained_blocks for entry in offers.menu]
        order = offers.in_order(depths, [-entry.int8_activations for entry in offers.menu])
        deepest = offers.best(order)
        fitting = deepest >= 0
        if not fitting.any():
            return deepest
        seconds = offers.virtual_seconds[deepest, np.arange(len(cohort))][fitting]
        limit = np.percentile(seconds, self._percentile)
        quickest = np.where(offers.fits, offers.virtual_seconds, np.inf).min(axis=0)
        return offers.best(order, among=offers.virtual_seconds <= np.maximum(limit, quickest))


def _of_depth(entry: Assignment, depth: int, count: int) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    ranks = (0,) * (entry.cut - depth) + entry.adapter.ranks[entry.cut - depth :]
    return replace(entry, adapter=replace(entry.adapter, ranks=ranks), int8_activations=count)
