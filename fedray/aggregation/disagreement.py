"""How unlike a round's updates are: what is left of their lengths when they are averaged."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedray.adapter import leading


class Disagreement:
    """Collects updates one by one, and keeps their weighted sum alone.

    For updates d_k of weights w_k the share of their mean square length that averaging cancels is
    ``1 - |sum w_k d_k|^2 / (sum w_k * sum w_k |d_k|^2)``: 0 where all are the same, and for n of one length
    and weight at right angles 1 - 1 / n. Divided by this, with n = (sum w_k)^2 / sum w_k^2, it is 1 for
    updates that have nothing in common, and more for such that oppose each other.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self._sums: dict[str, Tensor] = {}
        self._weights = self._squared_weights = self._lengths = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """One update, by name; a smaller tensor is the leading part of a larger one."""
        self._weights += weight
        self._squared_weights += weight * weight
        for name, tensor in tensors.items():
            own = tensor.detach().to(torch.float32)
            self._lengths += weight * float(own.square().sum())
            self._sums[name] = _added(self._sums.get(name), own, weight)

    @property
    def value(self) -> float | None:
        """None of fewer than two updates, and where none changed anything."""
        if not self._lengths or self._weights**2 <= self._squared_weights * (1 + 1e-9):
            return None
        summed = sum(float(tensor.square().sum()) for tensor in self._sums.values())
        cancelled = 1 - summed / (self._weights * self._lengths)
        return cancelled / (1 - self._squared_weights / self._weights**2)


def _added(total: Tensor | None, own: Tensor, weight: float) -> Tensor:
    if total is None:
        return own * weight
    if total.shape != own.shape:
        grown = total.new_zeros(tuple(map(max, total.shape, own.shape)))
        leading(grown, total.shape).copy_(total)
        total = grown
    leading(total, own.shape).add_(weight * own)
    return total
