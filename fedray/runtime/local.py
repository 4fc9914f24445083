"""The local runtime: one carrier in this process, one order after the other. It defines what is correct."""

import gc
from collections.abc import Iterator, Sequence

from fedray.runtime.carrier import Carrier, Done, Order
from fedray.training.workshop import Blueprint, Stock


class LocalRuntime:
    """Carries out orders here."""

    def __init__(self, blueprint: Blueprint, stock: Stock) -> None:
        """Opens one workshop on the stock's own memory."""
        self._carrier = Carrier(blueprint, stock)
        # Every job makes many small objects; without this each full collection walks all imported modules.
        gc.freeze()

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""
        for order in orders:
            yield Done(answer=self._carrier.carry_out(order), attempts=1)

    def close(self) -> None:
        """Garbage collection is as it was."""
        gc.unfreeze()
