"""What updates, and what clients start from, are sent as: named tensors, each coded alone or sent plain.

========= ==================================================================== ==========================
codec     what is sent of a tensor                                             decoded, it is
========= ==================================================================== ==========================
``none``  its numbers in their own dtype                                       the same bits
``bf16``  its numbers in bfloat16                                              rounded to nearest
``int8``  whole numbers -127 to 127 and a fp32 scale for each row              unbiased
``int4``  whole numbers -7 to 7, two a byte, and a fp32 scale for each row     unbiased
``topN``  its largest N per cent by magnitude, with their places               zero elsewhere, so biased
``rankN`` two factors of N ranks: the nearest matrix of that rank              truncated, so biased
========= ==================================================================== ==========================

Rows lie along the longer side of a matrix, so that a LoRA factor has a scale for each of its ranks. What is
coded must be shorter as it is serialised, its scales, places and shapes included; else the tensor goes plain.
How numbers are rounded and chosen is `fedray.model.codecs`'.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import assert_never

import torch
from torch import Tensor

from fedray.errors import ConfigError
from fedray.model.codecs import Cast, Coded, Largest, Quantised, decode, encode, kind_of
from fedray.model.wire import wire_bytes

Tensors = Mapping[str, Tensor]

_RANK = re.compile(r"rank([1-9][0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truncated:
    rank: int


_Kind = Cast | Quantised | Largest | _Truncated


def encode_tensors(tensors: Tensors, codec: str, seed_of: Callable[[str], int]) -> dict[str, Tensor]:
    """Code named tensors for the way to the other side.

    Args:
        tensors: finite floating numbers of any shape, by name.
        codec: see the module.
        seed_of: a name to the seed of its stochastic rounding, which draws from that and nothing else.

    Returns:
        What is serialised: a plain tensor under its own name, a coded one's parts under ``NAME.PART``.

    Raises:
        ConfigError: there is no such codec.
    """
    coded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_coded(name, tensor, codec):
            coded |= _named(name, _encoded(tensor.detach(), codec, seed_of(name)))
        else:
            coded[name] = tensor
    return coded


def decode_tensors(coded: Tensors, like: Tensors, codec: str) -> dict[str, Tensor]:
    """What the other side has: `encode_tensors` undone, as far as the codec allows.

    Args:
        coded: what came.
        like: tensors of the shapes and dtypes that were encoded, by name; those that did not come are
            left out.
        codec: that it was encoded with.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in like.items():
        if name in coded:
            out[name] = coded[name]
            continue
        parts = {part: coded.get(f"{name}.{part}") for part in _layout(tensor.shape, tensor.dtype, codec)}
        found = {part: t for part, t in parts.items() if t is not None}
        if found:
            out[name] = _decoded(found, tensor, codec)
    return out


def coded_layout(tensors: Tensors, codec: str) -> dict[str, Tensor]:
    """The shapes and dtypes that `encode_tensors` gives, on the meta device. Raises ConfigError likewise."""
    coded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_coded(name, tensor, codec):
            coded |= _named(name, _layout(tensor.shape, tensor.dtype, codec))
        else:
            coded[name] = tensor
    return coded


def is_coded(name: str, tensor: Tensor, codec: str) -> bool:
    """Whether the codec makes this tensor's message shorter; it is sent plain if not."""
    return _shrinks(name, tensor.shape, tensor.dtype, codec)


def leaves_out(codec: str) -> bool:
    """Whether what is decoded is biased for lack of what was left out: ``topN`` and ``rankN``."""
    return isinstance(_kind(codec), Largest | _Truncated)


def _kind(codec: str) -> _Kind:
    truncated = _RANK.fullmatch(codec)
    if truncated:
        return _Truncated(rank=int(truncated[1]))
    try:
        return kind_of(codec)
    except ConfigError as error:
        raise ConfigError(f"{error} For updates there are rank1, rank2, ... too.") from None


@cache
def _shrinks(name: str, shape: torch.Size, dtype: torch.dtype, codec: str) -> bool:
    plain = torch.empty(shape, dtype=dtype, device="meta")
    if not plain.numel() or not dtype.is_floating_point or _kind(codec) == Cast(dtype=None):
        return False
    return wire_bytes(_named(name, _layout(shape, dtype, codec))) < wire_bytes({name: plain})


@cache
def _layout(shape: torch.Size, dtype: torch.dtype, codec: str) -> dict[str, Tensor]:
    """A tensor's parts on the meta device; shared, so not to be changed."""
    return _encoded(torch.empty(shape, dtype=dtype, device="meta"), codec, 0)


def _named(name: str, parts: Tensors) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _encoded(tensor: Tensor, codec: str, seed: int) -> dict[str, Tensor]:
    kind = _kind(codec)
    rows = _as_rows(tensor, kind)
    match kind:
        case Cast() | Quantised() | Largest():
            return dict(encode(rows, codec, seed).tensors)
        case _Truncated():
            return _truncated(rows, kind.rank)
        case _:
            assert_never(kind)


def _decoded(parts: Tensors, like: Tensor, codec: str) -> Tensor:
    kind = _kind(codec)
    shape = _as_rows(torch.empty(like.shape, device="meta"), kind).shape
    match kind:
        case Cast() | Quantised() | Largest():
            rows = decode(Coded(codec=codec, shape=(shape[0], shape[1]), dtype=like.dtype, tensors=parts))
        case _Truncated():
            rows = parts["left"] @ parts["right"]
        case _:
            assert_never(kind)
    return _from_rows(rows, like.shape, kind)


def _as_rows(tensor: Tensor, kind: _Kind) -> Tensor:
    """A tensor as a matrix: one row of all entries to choose from, or rows along the longer side."""
    if tensor.dim() < 2 or isinstance(kind, Largest):
        return tensor.reshape(1, -1)
    matrix = tensor.flatten(1)
    return (matrix.T if _turns(tensor.shape, kind) else matrix).contiguous()


def _from_rows(rows: Tensor, shape: torch.Size, kind: _Kind) -> Tensor:
    """Undoes `_as_rows`."""
    return (rows.T if _turns(shape, kind) else rows).reshape(shape).contiguous()


def _turns(shape: torch.Size, kind: _Kind) -> bool:
    return len(shape) > 1 and not isinstance(kind, Largest) and shape[0] > math.prod(shape[1:])


def _truncated(matrix: Tensor, rank: int) -> dict[str, Tensor]:
    # The nearest matrix of a rank is its truncated SVD (Eckart-Young). In float64, so that what is left of
    # a rounding that another number of threads brings seldom reaches the factors.
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    side = values[:rank].sqrt()
    left, right = u[:, :rank] * side, side[:, None] * vt[:rank]
    return {"left": left.to(matrix.dtype).contiguous(), "right": right.to(matrix.dtype).contiguous()}
