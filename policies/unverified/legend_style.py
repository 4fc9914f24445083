"""LEGEND-style (2412.20004): LoRA nearest the output, ranks that grow towards it, depth by capacity.

Read was the abstract. Built: for every LoRA entry on all blocks one of each depth, counted from the output,
whose ranks rise from the menu's smallest to its largest; and for each client the deepest that it does in the
time that the middle of the cohort needs for its own deepest, or else its quickest. Each block's factors are
averaged over who trains it (``coverage_mean``). Not built: capacities that are measured and smoothed over
rounds, in whose place are declared prices; and ranks chosen by a convergence bound.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "laws"
PAPER = "2412.20004"


class Legend:
    """Rising ranks on the top blocks, as many blocks as the middle client's time allows."""

    aggregation = "coverage_mean"

    def __init__(self, *, percentile: float = 50.0) -> None:
        """Args: ``percentile``: of the cohort, whose time for its deepest offer is everybody's limit."""
        if not 0 <= percentile <= 100:
            raise PolicyError(f"legend_style: percentile is from 0 to 100, found {percentile}.")
        self._percentile = percentile

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of each whole LoRA entry on all blocks, every depth with rising ranks."""
        whole = [entry for entry in view.menu if entry.adapts_all_it_runs]
        if not whole:
            raise PolicyError(
                "legend_style puts LoRA on the top blocks of whole models, and the menu has none with it on "
                "all blocks; give menu.ranks and menu.depths: [all]."
            )
        low, high = min(e.max_rank for e in whole), max(e.max_rank for e in whole)
        return tuple(
            dict.fromkeys(_rising(e, depth, low, high) for e in whole for depth in range(1, e.cut + 1))
        )

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The deepest in time, and where nothing is in time the quickest."""
        depths = np.array([entry.num_trained_blocks for entry in offers.menu])
        deepest = offers.best(depths)
        fitting = deepest >= 0
        if not fitting.any():
            return deepest
        columns = np.arange(len(cohort))
        seconds = offers.virtual_seconds[deepest, columns][fitting]
        limit = np.percentile(seconds, self._percentile)
        quickest = np.where(offers.fits, offers.virtual_seconds, np.inf).min(axis=0)
        return offers.best(depths, among=offers.virtual_seconds <= np.maximum(limit, quickest))


def _rising(entry: Assignment, depth: int, low: int, high: int) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    rising = np.linspace(low, high, depth).round().astype(int).tolist() if depth > 1 else [high]
    ranks = (0,) * (entry.cut - depth) + tuple(rising)
    return replace(entry, adapter=replace(entry.adapter, ranks=ranks))
