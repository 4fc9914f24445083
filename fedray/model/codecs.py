"""What hidden states and their gradients are sent as at a cut: coded per token, decoded, counted.

Letters of shapes: T real tokens (padding is never sent: the caller packs), D the hidden width. What is said
of tokens holds of the rows of any matrix: `fedray.model.update_codecs` codes updates with the same.

========= ======================================================= ==========================
codec     what is sent of a token                                 decoded, it is
========= ======================================================= ==========================
``none``  its D numbers in their own dtype                        the same bits
``bf16``  its D numbers in bfloat16                               rounded to nearest
``int8``  D whole numbers -127 to 127 and one fp32 scale          unbiased
``int4``  D whole numbers -7 to 7, two a byte, and one fp32 scale unbiased
``topN``  its largest N per cent by magnitude, with their places  zero elsewhere, so biased
========= ======================================================= ==========================

The integers are rounded stochastically (QSGD, 1610.02132, in style: the scale here is a token's largest
magnitude, not its norm): a number between two steps goes up with the probability that makes the mean
right, so E[decode(encode(x))] = x. Gradients at a cut are tiny and heavy-tailed, hence a scale per token.
A number that is not finite (or, in float64, past what an fp32 scale reaches) makes its whole token NaN
under ``int8`` and ``int4`` and stays what it is under the others, so that the loss says so; looking for it
here would make a GPU wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from fedray.errors import ConfigError

# A scale below the smallest normal fp32 would lose digits or be zero; a larger one is as unbiased.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
# Places in a token of at most this width fit into two bytes.
_WIDEST_INT16 = 2**15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """What crosses the cut, one way, for some tokens.

    Attributes:
        codec: its name.
        shape: T and D of what was encoded.
        dtype: of what was encoded and of what `decode` gives back.
        tensors: by name; ``values``, and ``scale`` or ``index`` where the codec has one.
    """

    codec: str
    shape: tuple[int, int]
    dtype: torch.dtype
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Every number in another dtype; None is the numbers' own."""

    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """Whole numbers of so many bits, with a scale per token."""

    bits: Literal[4, 8]

    @property
    def largest(self) -> int:
        """The most steps from zero."""
        return (1 << self.bits - 1) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest entries of each token, with their places."""

    per_cent: int

    def count(self, width: int) -> int:
        """Entries kept of a token: at most the share asked for, but one at least."""
        return max(1, width * self.per_cent // 100)


def encode(x: Tensor, codec: str, seed: int) -> Coded:
    """Code real tokens for the way across a cut; no gradient flows through it.

    Under ``none``, and ``bf16`` of what is bfloat16 already, the message is ``x``'s own memory.

    Args:
        x: [T, D], of any floating dtype; T may be 0. On the meta device only shapes come out.
        codec: see the module.
        seed: from `fedray.seeds.derive_seed`; stochastic rounding draws from it and nothing else. Equal
            seeds give equal bits on a device; a GPU draws other numbers than a CPU.

    Raises:
        ConfigError: there is no such codec, or ``x`` is not [T, D] of floating numbers.
    """
    kind = kind_of(codec)
    if x.dim() != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise ConfigError(
            f"A cut sends floating numbers as [tokens, width], found {x.dtype} of shape {tuple(x.shape)}; "
            "pack the real tokens of all rows end to end first."
        )
    x = x.detach()
    match kind:
        case Cast():
            tensors = {"values": x if kind.dtype is None else x.to(kind.dtype)}
        case Quantised():
            tensors = _quantise(x, kind, seed)
        case Largest():
            tensors = _select(x, kind)
        case _:
            assert_never(kind)
    return Coded(codec=codec, shape=(x.shape[0], x.shape[1]), dtype=x.dtype, tensors=tensors)


def decode(coded: Coded) -> Tensor:
    """What the other side computes with, [T, D] in the dtype that was encoded.

    Its gradient is taken with respect to these numbers (a straight-through estimate of those encoded).
    Under ``int8`` and ``int4`` each is within one scale of what was sent, and a dtype narrower than fp32
    rounds once more, to nearest.
    """
    kind, values = kind_of(coded.codec), coded.tensors["values"]
    match kind:
        case Cast():
            return values.to(coded.dtype)
        case Quantised():
            return _dequantise(coded, kind)
        case Largest():
            whole = torch.zeros(coded.shape, dtype=coded.dtype, device=values.device)
            return whole.scatter_(1, coded.tensors["index"].long(), values)
        case _:
            assert_never(kind)


def coded_bytes(coded: Coded) -> int:
    """Payload bytes of a message: numbers, scales and places."""
    return sum(tensor.numel() * tensor.element_size() for tensor in coded.tensors.values())


def bytes_per_token(codec: str, width: int, dtype: torch.dtype) -> int:
    """What `coded_bytes` counts for each token of ``width`` numbers. Raises ConfigError as `encode`."""
    kind = kind_of(codec)
    match kind:
        case Cast():
            return width * (kind.dtype or dtype).itemsize
        case Quantised():
            return -(-width * kind.bits // 8) + torch.float32.itemsize
        case Largest():
            return kind.count(width) * (dtype.itemsize + _index_dtype(width).itemsize)
        case _:
            assert_never(kind)


def kind_of(codec: str) -> Cast | Quantised | Largest:
    """What a codec's name stands for. Raises ConfigError for an unknown one."""
    match codec:
        case "none":
            return Cast(dtype=None)
        case "bf16":
            return Cast(dtype=torch.bfloat16)
        case "int8":
            return Quantised(bits=8)
        case "int4":
            return Quantised(bits=4)
    share = codec.removeprefix("top")
    if share != codec and share.isascii() and share.isdigit() and share == str(int(share)):
        per_cent = int(share)
        if 1 <= per_cent <= 99:
            return Largest(per_cent=per_cent)
    raise ConfigError(
        f"A cut's codec is none, bf16, int8, int4 or top1 to top99 (per cent), found {codec!r}."
    )


def _quantise(x: Tensor, kind: Quantised, seed: int) -> dict[str, Tensor]:
    # float64 keeps its own digits; narrower dtypes are computed with in fp32.
    exact = x if x.dtype == torch.float64 else x.float()
    scale = (exact.abs().amax(1, keepdim=True) / kind.largest).float().clamp(min=_SMALLEST_SCALE)
    steps = exact / scale
    low = steps.floor()
    up = _uniform(x, seed) < steps - low
    # Rounding of the scale can put the largest entry a hair outside.
    whole = (low + up).clamp(-kind.largest, kind.largest)
    # An entry that is not finite has made the scale inf or NaN: finite entries are 0 steps of it or NaN,
    # and zero times either is NaN. No NaN is cast to an integer, since that is anything.
    whole = whole.nan_to_num(0.0).to(torch.int8)
    return {"values": whole if kind.bits == 8 else two_a_byte(whole), "scale": scale}


def _dequantise(coded: Coded, kind: Quantised) -> Tensor:
    values, scale = coded.tensors["values"], coded.tensors["scale"]
    whole = values if kind.bits == 8 else one_a_byte(values, coded.shape[1])
    exact = torch.float64 if coded.dtype == torch.float64 else torch.float32
    # A scale rounded up times the largest step can overflow where the entry itself did not.
    bound = torch.finfo(coded.dtype).max
    return (whole.to(exact) * scale.to(exact)).clamp(-bound, bound).to(coded.dtype)


def _uniform(x: Tensor, seed: int) -> Tensor:
    """Numbers in [0, 1) of x's shape, from this seed alone."""
    if x.is_meta:
        return torch.empty(x.shape, device=x.device)
    source = torch.Generator(device=x.device).manual_seed(seed)
    return torch.rand(x.shape, generator=source, device=x.device)


def two_a_byte(whole: Tensor) -> Tensor:
    """[T, D] of -7 to 7 as [T, ceil(D / 2)]: plus 8, the even place in the low half; the last may idle."""
    nibbles = torch.nn.functional.pad((whole + 8).to(torch.uint8), (0, whole.shape[1] % 2), value=8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def one_a_byte(packed: Tensor, width: int) -> Tensor:
    """Undoes `two_a_byte`."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :width]
    return nibbles.to(torch.int8) - 8


def _select(x: Tensor, kind: Largest) -> dict[str, Tensor]:
    # topk takes NaN for the largest, so it is sent.
    index = x.abs().topk(kind.count(x.shape[1]), dim=1, sorted=False).indices
    return {"values": x.gather(1, index), "index": index.to(_index_dtype(x.shape[1]))}


def _index_dtype(width: int) -> torch.dtype:
    return torch.int16 if width <= _WIDEST_INT16 else torch.int32
