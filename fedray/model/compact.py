"""Frozen linears that keep less than their weight and make it whole for a product, forward and backward.

What they keep are plain buffers, which the byte counter, the meta device and arrays shared between processes
take as they are. A product makes its weight whole in the dtype of what it multiplies, and drops it again: one
at a time is whole.

Letters of shapes: I and O a linear's input and output width.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import TORCH_DTYPES, TaskHead, empty_backbone

Whole = Callable[[tuple[Tensor, ...], torch.dtype], Tensor]
"""What is kept, and a dtype, to the weight [O, I]."""


class CompactLinear:
    """Takes the place of a frozen linear's ``forward``; its weight is buffers in place of a parameter."""

    def __init__(self, linear: nn.Linear | Conv1D, kept: Mapping[str, Tensor], whole: Whole) -> None:
        """Args: linear: whose weight is taken away; ``kept``: buffers by name, as ``whole`` takes them."""
        self.linear, self._names, self._whole = linear, tuple(kept), whole
        linear._parameters["weight"] = None
        for name, tensor in kept.items():
            linear.register_buffer(name, tensor)
        linear.forward = self  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        kept = (self.linear.get_buffer(name) for name in self._names)
        answer: Tensor = _Multiplied.apply(x.flatten(0, -2), self._whole, *kept)  # type: ignore[no-untyped-call]
        bias = cast(Tensor | None, self.linear.bias)
        return (answer if bias is None else answer + bias).view(*x.shape[:-1], -1)


class _Multiplied(torch.autograd.Function):
    """``x @ weight.T``, which keeps nothing of the whole weight for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Whole, *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.whole = whole
        return x @ whole(kept, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        return grads[0] @ ctx.whole(kept, grads[0].dtype), None, *(None for _ in kept)


def weight_of(linear: nn.Module) -> Tensor:
    """A linear's weight as [O, I], without graph; a Conv1D's is kept the other way round."""
    weight = linear.get_parameter("weight").detach()
    return weight.T if isinstance(linear, Conv1D) else weight


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
