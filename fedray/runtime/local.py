"""The local runtime: one carrier in this process, one order after the other. It defines what is correct."""

import gc
from collections.abc import Iterator, Sequence

from fedray.runtime.carrier import Carrier, Done, Order
from fedray.runtime.split import ServerSetting, SplitDone, SplitEvaluation, train_in_process
from fedray.server.lockstep import SplitRound
from fedray.server.passing import PassingHere
from fedray.training.evaluate import Outputs, evaluate_rows
from fedray.training.tap import Heard
from fedray.training.workshop import Blueprint, Stock


class LocalRuntime:
    """Carries out orders here."""

    def __init__(self, blueprint: Blueprint, stock: Stock, server: ServerSetting | None = None) -> None:
        """Opens one workshop on the stock's own memory; ``server`` is for runs with cuts."""
        self._carrier = Carrier(blueprint, stock)
        self._server = server
        # Every job makes many small objects; without this each full collection walks all imported modules.
        gc.freeze()

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""
        for order in orders:
            yield Done(answer=self._carrier.carry_out(order), attempts=1)

    def train_split(self, split: SplitRound, heard: Heard | None = None) -> SplitDone:
        """A round under a cut, here."""
        assert self._server is not None, "a run with cuts has a server"
        return train_in_process(self._carrier.workshop, split, self._server, heard)

    def evaluate_split(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """Both sides here."""
        assert self._server is not None, "a run with cuts has a server"
        workshop, server = self._carrier.workshop, self._server
        middle = PassingHere(workshop, server.num_shards, server.attention)
        for rows in evaluation.chunks:
            yield evaluate_rows(workshop, evaluation.adapter, rows, evaluation.beside(middle))

    def close(self) -> None:
        """Garbage collection is as it was."""
        gc.unfreeze()
