"""Means over who holds what: each entry of a tensor is averaged over the clients whose part covers it.

An entry that nobody holds stays what it was, bit for bit; where everybody holds everything this is FedAvg
(1602.05629). The same arithmetic is HeteroFL's (2010.01264), FedRolex's (2212.01548) and that of the methods
that give clients some of the blocks; they differ in who holds what, and in the weights.
"""

import torch
from torch import Tensor

from fedray.adapter import Place


class CoverageSum:
    """One tensor's sum of weighted changes, and by entry the weight of those that hold it; float64."""

    def __init__(self, old: Tensor) -> None:
        """Args: old: the tensor that clients were given their parts of."""
        self._old = old
        self._total = torch.zeros_like(old, dtype=torch.float64)
        self._weight = 0.0  # of those that hold all of it
        self._held: Tensor | None = None  # beside that, by entry

    def add(self, change: Tensor, place: Place | None, weight: float) -> None:
        """Add a client's change of its part. Indices of an axis are without repeats."""
        if place is None:
            self._total.add_(change.double(), alpha=weight)
            self._weight += weight
            return
        if self._held is None:
            self._held = torch.zeros_like(self._total)
        grid = entries_at(self._old, place)
        self._total[grid] += weight * change.double()
        self._held[grid] += weight

    def finish(self) -> Tensor:
        """The tensor moved by the mean change of each entry, in its own dtype."""
        if self._held is None:
            return (self._old.double() + self._total / self._weight).to(self._old.dtype)
        held = self._held + self._weight
        moved = (self._old.double() + self._total / held.clamp(min=torch.finfo(torch.float64).tiny)).to(
            self._old.dtype
        )
        return torch.where(held > 0, moved, self._old)


def entries_at(whole: Tensor, place: Place) -> tuple[Tensor, ...]:
    """Index arrays that broadcast against each other to the part's shape, as numpy's ``ix_``."""
    axes = [
        torch.arange(size, device=whole.device) if own is None else own.to(whole.device)
        for size, own in zip(whole.shape, place, strict=True)
    ]
    return tuple(
        own.view([-1 if axis == at else 1 for axis in range(len(axes))]) for at, own in enumerate(axes)
    )
