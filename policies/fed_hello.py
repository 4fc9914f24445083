"""Fed-HeLLo (2506.12213): each client trains LoRA on some blocks, drawn with more weight on both ends.

Reproduced, after the official code: half, three quarters or all of the blocks by what a client can hold,
drawn without replacement with the fixed prior below; every ``period`` rounds the weights are made anew: the
Fisher information of each block, three clusters of blocks, 1/27, 2/27 and 1/9 by cluster, normalised; and
each block's mean of changes over who trained it, all alike (the aggregation ``coverage_mean``).

The code freezes blocks by a learning rate of zero, which saves nothing. Here nothing is computed for a block
that is not drawn, but that a gradient must pass it on its way to a lower one: a block drawn low costs the
backward pass through everything above, and every drawing is priced as it is. What a client can hold is what
fits it with block 0 among those drawn. Not copied: cluster ids in no order (ours are ordered by information),
and a "layer 1" that also names layers 10 and 11. Our choice: for models of other than 12 blocks the prior is
read at the same relative height; information is the mean of squared gradients over the clients that trained a
block. The published accuracies are not checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Floats
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State, View
from fedray.seeds import generator

RUNG = "definition"
PAPER = "2506.12213"
CHECKS = ("../tests/policies/test_fed_hello.py",)

PRIOR = np.array([3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3]) / 27
SHARES = (0.5, 0.75, 1.0)


class FedHello:
    """Its state has by block the ``weights`` once learnt, and of a period the ``sums`` and ``counts``."""

    aggregation = "coverage_mean"

    def __init__(self, *, rank: int | None = None, period: int | None = 50) -> None:
        """Args: ``rank``: the menu's largest if absent; ``period`` in rounds, None keeps the prior."""
        if period is not None and period < 1:
            raise PolicyError(f"fed_hello: period is 1 round or more, or absent; found {period}.")
        self._rank, self._period = rank, period
        self.observables = {"fisher"} if period else set()

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of every number of blocks the lowest ones, and block 0 with the highest: they hold the most."""
        lora = [entry for entry in view.menu if not entry.split and isinstance(entry.adapter, Lora)]
        whole = [entry for entry in lora if all(entry.trained)]
        if not whole:
            raise PolicyError(
                "fed_hello draws from all blocks of whole models, and the menu has no LoRA entry that trains "
                "them; give menu.ranks, and depths with all."
            )
        rank = self._rank or max(entry.max_rank for entry in whole)
        size = whole[0].cut
        counts = sorted({max(1, round(share * size)) for share in SHARES})
        drawings = [
            _on(entry, blocks, rank)
            for entry in whole
            for count in counts
            for blocks in (range(count), (0, *range(size - count + 1, size)))
        ]
        return tuple(dict.fromkeys(drawings))

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[list[Assignment | None], State]:
        """The most blocks that fit wherever they lie, drawn for this client and round."""
        counts = np.array([entry.num_trained_blocks for entry in offers.menu])
        alike = [_on(entry, range(n), entry.max_rank) for entry, n in zip(offers.menu, counts, strict=True)]
        # An entry is given only where the other drawing of as many blocks fits, too.
        both = np.stack([offers.fits[[other == own for other in alike]].all(axis=0) for own in alike])
        weights = state.get("weights", _at_heights(PRIOR, offers.menu[0].cut))
        given: list[Assignment | None] = []
        for client, row in zip(
            cohort.client_ids.tolist(), offers.best(counts, among=both).tolist(), strict=True
        ):
            if row < 0:
                given.append(None)
                continue
            random = generator(cohort.seed, "fed_hello", client)
            drawn = random.choice(len(weights), counts[row], replace=False, p=weights)
            given.append(_on(offers.menu[row], drawn.tolist(), offers.menu[row].max_rank))
        return given, state

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Sum up the blocks' information; at the end of a period the weights that follow from it."""
        told = [record["statistics"]["fisher"] for record in records if record["statistics"]]
        if not told or self._period is None:
            return state
        told_of = ~np.isnan(told)
        sums = state.get("sums", 0.0) + np.where(told_of, told, 0.0).sum(axis=0)
        counts = state.get("counts", 0) + told_of.sum(axis=0)
        if records[0]["round"] % self._period or not counts.all():
            return {**state, "sums": sums, "counts": counts}
        return {"weights": learnt(sums / counts)}


def learnt(information: Floats) -> Floats:
    """The weights of blocks, summing to 1: 1/27, 2/27 and 1/9 by cluster, the most informative the most."""
    order = np.argsort(information, kind="stable")
    parts = min(_three_parts(information[order]), key=_scatter)
    weights = np.empty(len(information))
    weights[order] = np.concatenate([np.full(len(p), (i + 1) / 27) for i, p in enumerate(parts)])
    shares: Floats = weights / weights.sum()
    return shares


def _three_parts(ascending: Floats) -> list[list[Floats]]:
    """Every way to part sorted values in three, or in as many as there are; 3-means is one of them."""
    count = min(3, len(ascending))
    return [np.split(ascending, ends) for ends in combinations(range(1, len(ascending)), count - 1)]


def _scatter(parts: list[Floats]) -> float:
    return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)


def _at_heights(prior: Floats, num_blocks: int) -> Floats:
    read = prior[np.arange(num_blocks) * len(prior) // num_blocks]
    shares: Floats = read / read.sum()
    return shares


def _on(entry: Assignment, blocks: Sequence[int], rank: int) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    ranks = tuple(rank if block in blocks else 0 for block in range(entry.cut))
    return replace(entry, adapter=replace(entry.adapter, ranks=ranks))
