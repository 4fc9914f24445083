"""Frozen linears kept in 8 or 4 bits: the weights of a block as small integers with their scales.

Rounding to nearest, symmetric, a scale per output and group of 64 inputs (per output where the width is no
multiple of 64): the absmax quantisation of LLM.int8 (2208.07339) and QLoRA (2305.14314), without the first's
outliers and the second's numbers. A product makes its weight whole in the dtype of what it multiplies, and
drops it again, forward and backward: one at a time is whole. Embeddings, norms and biases stay as they are.

Letters of shapes: I and O a linear's input and output width, G groups of I.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.assignment import WeightBits
from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.codecs import one_a_byte, two_a_byte
from fedray.model.load import TORCH_DTYPES, TaskHead, empty_backbone

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


class QuantisedLinear:
    """Takes the place of a frozen linear's ``forward``; its weight is two buffers in place of a parameter."""

    def __init__(self, linear: nn.Linear | Conv1D, bits: WeightBits) -> None:
        """Args: linear: whose weight is taken away."""
        self.linear = linear
        transposed = isinstance(linear, Conv1D)
        weight = linear.weight.detach()
        values, scales = quantise(weight.T if transposed else weight, bits)
        self.width = weight.shape[0 if transposed else 1]
        linear._parameters["weight"] = None
        linear.register_buffer("quantised_weight", values)
        linear.register_buffer("weight_scales", scales)
        linear.forward = self  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        values, scales = self.linear.get_buffer("quantised_weight"), self.linear.get_buffer("weight_scales")
        answer: Tensor = _Multiplied.apply(x.flatten(0, -2), values, scales, self.width)  # type: ignore[no-untyped-call]
        bias = cast(Tensor | None, self.linear.bias)
        return (answer if bias is None else answer + bias).view(*x.shape[:-1], -1)


class _Multiplied(torch.autograd.Function):
    """``x @ weight.T``, which keeps nothing of the whole weight for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scales: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(values, scales)
        ctx.width = width
        return x @ dequantise(values, scales, width, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        values, scales = ctx.saved_tensors
        return grads[0] @ dequantise(values, scales, ctx.width, grads[0].dtype), None, None, None


def quantised(anatomy: Anatomy, bits: WeightBits) -> Anatomy:
    """The model with its blocks' linears in so many bits; all else it shares with the one given.

    On the meta device shapes alone. Blocks that this process does not hold stay empty.

    Raises:
        ModelError: for a model whose linears train or are quantised already.
    """
    return with_linears(anatomy, lambda linear: QuantisedLinear(linear, bits))


def with_linears(anatomy: Anatomy, replace: Callable[[nn.Linear | Conv1D], object]) -> Anatomy:
    """The model with its blocks' linears changed; all else it shares with the one given.

    Raises:
        ModelError: for a model whose linears train or are changed already.
    """
    whole = anatomy.model
    dtype = next(dtype for dtype, torchs in TORCH_DTYPES.items() if torchs == whole.dtype)
    head: TaskHead = "classification" if anatomy.head_kind == "backbone" else "causal_lm"
    model = empty_backbone(whole.config, head, dtype)
    modules = dict(model.named_modules())
    for path, source in whole.named_modules():
        for leaf, parameter in source.named_parameters(recurse=False):
            modules[path]._parameters[leaf] = nn.Parameter(parameter.detach(), requires_grad=False)
        for leaf, buffer in source.named_buffers(recurse=False):
            if leaf not in modules[path]._buffers:
                raise ModelError(
                    f"{path}.{leaf} has no place in a model whose linears are changed once only."
                )
            modules[path]._buffers[leaf] = buffer
    model.tie_weights()
    parts = dissect(model)
    for block in range(parts.num_blocks):
        for linear in parts.linears(block).values():
            replace(cast(nn.Linear | Conv1D, linear))
    return parts
