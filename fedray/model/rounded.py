"""Activations kept in 8 bits: rounded as a forward pass saves them, whole again when the backward pass asks.

The forward pass computes as it always does. What autograd saves of it is kept as whole numbers from -127 to
127 with a scale for each row (absmax, to nearest), so a gradient is off by that rounding alone. ActNN
(2104.14129) and FedQuad (2506.01001) keep activations so; the first draws its roundings, of the second the
abstract was read.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

_LEVELS = 127
_SCALE_BYTES = 4


class Rounded(NamedTuple):
    """All of a storage as rows of whole numbers, and where in it a tensor lies."""

    values: Tensor  # int8, [rows, row]
    scales: Tensor  # float32, [rows, 1]
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int


@contextmanager
def kept_in_8_bits(others: Iterable[Tensor], at_least: int = 0) -> Iterator[None]:
    """What autograd saves within the ``with`` is kept in 8 bits.

    Args:
        others: that are there anyway, such as weights and masks: saved as they are.
        at_least: so many numbers has a tensor that is rounded. Those with one for a token, or for a head of
            it, such as a norm's or a softmax's, are small and would weigh on all that is computed from them.
    """
    rounding = Rounding(others, at_least)
    with torch.autograd.graph.saved_tensors_hooks(rounding.pack, unpack):
        yield


class Rounding:
    """Rounds each storage once, whatever views of it are saved."""

    def __init__(self, others: Iterable[Tensor], at_least: int = 0) -> None:
        self._at_least = at_least
        self._others = {id(tensor.untyped_storage()) for tensor in others}
        self._known: dict[tuple[int, int], tuple[weakref.ref[torch.UntypedStorage], Tensor, Tensor]] = {}

    @torch.no_grad()
    def pack(self, tensor: Tensor) -> Tensor | Rounded:
        """A tensor rounded, or as it is where that would not be shorter."""
        storage = tensor.untyped_storage()
        if not tensor.is_floating_point() or id(storage) in self._others:
            return tensor
        size, row = storage.nbytes() // tensor.element_size(), _row_of(tensor)
        if size < self._at_least or size % row or row + _SCALE_BYTES >= row * tensor.element_size():
            return tensor
        key = id(storage), tensor._version
        known = self._known.get(key)
        if known is None or known[0]() is not storage:
            # Views of it may be saved in another order of their axes; memory has one.
            rows = tensor.detach().as_strided((size // row, row), (row, 1), 0)
            known = weakref.ref(storage), *rounded(rows)
            self._known[key] = known
        _, values, scales = known
        offset = int(tensor.storage_offset())
        return Rounded(values, scales, tensor.dtype, tensor.shape, tensor.stride(), offset)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [rows, row] and a scale for each row [rows, 1]; off by half a scale at most."""
    scales = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True).float() / _LEVELS
    scales.clamp_(min=torch.finfo(torch.float32).tiny)  # a row of zeros
    return (rows / scales).round_().to(torch.int8), scales


@torch.no_grad()
def unpack(kept: Tensor | Rounded) -> Tensor:
    """What `Rounding.pack` was given, but for its rounding."""
    if isinstance(kept, Tensor):
        return kept
    whole = kept.values.to(kept.dtype).mul_(kept.scales.to(kept.dtype))
    return whole.as_strided(kept.shape, kept.strides, kept.offset)


def _row_of(tensor: Tensor) -> int:
    """The length of the axis whose numbers lie beside each other; 1 where none is."""
    beside = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 1]
    return max(beside, default=1)
