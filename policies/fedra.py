"""FedRA (2311.11227): every round each client trains LoRA on random blocks, joined into a submodel.

Reproduced, after the official code: as many blocks as a client can hold, drawn uniformly without replacement
and run in their order, LoRA of one rank on all of them beside the head; the server averages each block's
factors over the clients that held it, all alike (the aggregation ``coverage_mean``), and a block nobody held
stays what it was. The frozen weights of blocks that a client has not met before must reach it, and its offer
pays for them. Left out: one net size per domain; what a client can hold is what fits it. The published
accuracies are not checked. With ``blocks="in_turn"``, nobody's published method, a client's blocks are
neighbours that move up by one a round, around the end: what FedRolex (2212.01548) does to widths.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, State, View
from fedray.seeds import generator

RUNG = "definition"
PAPER = "2311.11227"
CHECKS = ("../tests/policies/test_fedra.py",)


class FedRA:
    """Offers the leading n blocks for every n, as a price of any n, and draws which n."""

    aggregation = "coverage_mean"

    def __init__(self, *, rank: int | None = None, blocks: str = "by_lot") -> None:
        """Args: ``rank``: of every trained block, the menu's largest if absent; ``blocks``: see the file."""
        if blocks not in ("by_lot", "in_turn"):
            raise PolicyError(f"fedra: blocks is by_lot or in_turn, found {blocks!r}.")
        self._rank, self._in_turn = rank, blocks == "in_turn"

    def menu(self, view: View) -> Sequence[Assignment]:
        """Of each whole LoRA entry that trains every block, submodels of every depth."""
        whole = [entry for entry in view.menu if not entry.split and isinstance(entry.adapter, Lora)]
        if not whole:
            raise PolicyError(
                "fedra trains LoRA on whole blocks, and the menu has no such entry; give ranks."
            )
        depth = max(entry.cut for entry in whole)
        rank = self._rank or max(entry.max_rank for entry in whole)
        plain = [entry for entry in whole if entry.cut == depth]
        return tuple(dict.fromkeys(_leading(entry, n, rank) for entry in plain for n in range(1, depth + 1)))

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[list[Assignment | None], State]:
        """The most blocks that fit, drawn for this client and round."""
        num_blocks = int(offers.cut.max())
        given: list[Assignment | None] = []
        for client, row in zip(cohort.client_ids.tolist(), offers.best(offers.cut).tolist(), strict=True):
            if row < 0:
                given.append(None)
                continue
            entry = offers.menu[row]
            if self._in_turn:
                order = np.roll(np.arange(num_blocks), 1 - cohort.round)
            else:
                order = generator(cohort.seed, "fedra", client).permutation(num_blocks)
            given.append(replace(entry, blocks=tuple(np.sort(order[: entry.cut]).tolist())))
        return given, state


def _leading(entry: Assignment, count: int, rank: int) -> Assignment:
    assert isinstance(entry.adapter, Lora)
    adapter = replace(entry.adapter, ranks=(rank,) * count)
    return replace(entry, blocks=tuple(range(count)), adapter=adapter, exits=())
