"""Frozen linears kept in 8 or 4 bits: the weights of a block as small integers with their scales.

Rounding to nearest, symmetric, a scale per output and group of 64 inputs (per output where the width is no
multiple of 64): the absmax quantisation of LLM.int8 (2208.07339) and QLoRA (2305.14314), without the first's
outliers and the second's numbers. Embeddings, norms and biases stay as they are.

Letters of shapes: I and O a linear's input and output width, G groups of I.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.assignment import WeightBits
from fedray.model.anatomy import Anatomy
from fedray.model.codecs import one_a_byte, two_a_byte
from fedray.model.compact import CompactLinear, weight_of, with_linears

GROUP = 64


def quantise(weight: Tensor, bits: WeightBits) -> tuple[Tensor, Tensor]:
    """A weight as integers and scales; `dequantise` undoes it to within half a scale.

    Args:
        weight: [O, I]. On the meta device shapes alone come out.
        bits: 8 gives whole numbers from -127 to 127, 4 from -7 to 7.

    Returns:
        int8 [O, I], or two numbers a byte, uint8 [O, ceil(I / 2)]; and fp32 scales [O, G].
    """
    largest = 2 ** (bits - 1) - 1
    grouped = weight.float().unflatten(1, (-1, _group(weight.shape[1])))
    scales = (grouped.abs().amax(2, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    whole = (grouped / scales).round().clamp(-largest, largest).flatten(1).to(torch.int8)
    return whole if bits == 8 else two_a_byte(whole), scales.squeeze(2)


def dequantise(values: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] that a linear computes with; ``width`` is I."""
    whole: Tensor = values if values.dtype == torch.int8 else one_a_byte(values, width)
    grouped: Tensor = whole.to(dtype).unflatten(1, (scales.shape[1], -1))
    return (grouped * scales.to(dtype).unsqueeze(2)).flatten(1)


def _group(width: int) -> int:
    return width if width % GROUP else GROUP


def quantised(anatomy: Anatomy, bits: WeightBits) -> Anatomy:
    """The model with its blocks' linears in so many bits; all else it shares with the one given.

    On the meta device shapes alone. Blocks that this process does not hold stay empty.

    Raises:
        ModelError: for a model whose linears train or are quantised already.
    """
    return with_linears(anatomy, lambda linear: _quantise_linear(linear, bits))


def _quantise_linear(linear: nn.Linear | Conv1D, bits: WeightBits) -> None:
    weight = weight_of(linear)
    width = weight.shape[1]
    values, scales = quantise(weight, bits)

    # It holds the width and not the weight, which is to go.
    def whole(kept: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return dequantise(kept[0], kept[1], width, dtype)

    CompactLinear(linear, {"quantised_weight": values, "weight_scales": scales}, whole)
