"""DevFT-style (2508.00041): a model that grows, from few blocks at first to all in the end.

Read was the abstract. Built: stages of equal length; in each everybody trains LoRA on a submodel of evenly
spread blocks, the first always among them, whose factors stay where they are when the next stage adds blocks
between (``coverage_mean``). Not built: groups of like blocks found by spectral clustering, and a fused
representative block for each group, in whose place stands one of them as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "laws"
PAPER = "2508.00041"


class DevFT:
    """The stage's submodel for everybody, at the largest rank that fits."""

    aggregation = "coverage_mean"

    def __init__(self, *, stages: int = 4, rounds_per_stage: int = 5) -> None:
        """Args: ``stages``: of which the last has all blocks; ``rounds_per_stage``: but for the last."""
        for name, value in (("stages", stages), ("rounds_per_stage", rounds_per_stage)):
            if value < 1:
                raise PolicyError(f"devft_style: {name} is 1 or more, found {value}.")
        self._stages, self._rounds = stages, rounds_per_stage

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of each whole LoRA entry on all blocks its part in this round's stage."""
        whole = [entry for entry in view.menu if entry.adapts_all_it_runs]
        if not whole:
            raise PolicyError(
                "devft_style trains LoRA on submodels, and the menu has no entry with it on all blocks; "
                "give menu.ranks and menu.depths: [all]."
            )
        stage = min(1 + (view.round - 1) // self._rounds, self._stages)
        deepest = max(entry.cut for entry in whole)
        return tuple(
            dict.fromkeys(_spread(e, -(-e.cut * stage // self._stages)) for e in whole if e.cut == deepest)
        )

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The largest rank that fits."""
        return offers.best(offers.sum_of_ranks)


def _spread(entry: Assignment, count: int) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    blocks = np.unique(np.linspace(0, entry.cut - 1, max(count, 1)).round().astype(int)).tolist()
    ranks = tuple(entry.adapter.ranks[block] for block in blocks)
    return replace(
        entry, blocks=tuple(blocks), adapter=replace(entry.adapter, ranks=ranks), exits=(), recompute=False
    )
