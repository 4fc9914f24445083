"""Frozen linears of which the smallest weights are zero: a bit for each place and the numbers that are left.

Magnitude pruning (1506.02626) of each weight by itself, unstructured: where zeros lie says nothing of what a
product costs, which is that of a whole weight, made when it multiplies and dropped again, forward and
backward. So a client stores and is sent less, holds less between products, and computes as much. Embeddings,
norms and biases stay as they are. Fewer units in all, which saves arithmetic too, are `fedray.width`'s.

Letters of shapes: I and O a linear's input and output width, N = O * I, K numbers that are left.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.model.anatomy import Anatomy
from fedray.model.quantized import with_linears


def kept_count(size: int, sparsity: float) -> int:
    """How many of so many weights stay: one at least."""
    return max(1, round((1 - sparsity) * size))


def prune(weight: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
    """The largest weights, [K], in order; and a bit for each place, uint8 [ceil(N / 8)], low bits first.

    Args:
        weight: [O, I]. On the meta device shapes alone come out.
        sparsity: share of zeros; of equal weights those at lower places stay.
    """
    flat = weight.detach().flatten()
    count = kept_count(len(flat), sparsity)
    order = torch.sort(flat.abs(), descending=True, stable=True).indices[:count]
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device).scatter_(0, order, True)
    values = flat.gather(0, order.sort().values)
    return values, _packed(kept)


def whole(values: Tensor, bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """`prune` undone, [O, I], with zeros for what is gone."""
    size = shape[0] * shape[1]
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    kept = ((bits.unsqueeze(1) >> shifts) & 1).flatten()[:size].bool()
    empty = torch.zeros(size, dtype=values.dtype, device=values.device)
    return empty.masked_scatter_(kept, values).view(shape)


def _packed(kept: Tensor) -> Tensor:
    padded = nn.functional.pad(kept.to(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=kept.device)
    return (padded << shifts).sum(1, dtype=torch.uint8)


class PrunedLinear:
    """Takes the place of a frozen linear's ``forward``; its weight is two buffers in place of a parameter."""

    def __init__(self, linear: nn.Linear | Conv1D, sparsity: float) -> None:
        """Args: linear: whose weight is taken away."""
        self.linear = linear
        weight = linear.weight.detach().T if isinstance(linear, Conv1D) else linear.weight.detach()
        self.shape = (weight.shape[0], weight.shape[1])
        values, bits = prune(weight, sparsity)
        linear._parameters["weight"] = None
        linear.register_buffer("kept_weights", values)
        linear.register_buffer("kept_places", bits)
        linear.forward = self  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        values, bits = self.linear.get_buffer("kept_weights"), self.linear.get_buffer("kept_places")
        answer: Tensor = _Multiplied.apply(x.flatten(0, -2), values, bits, self.shape)  # type: ignore[no-untyped-call]
        bias = cast(Tensor | None, self.linear.bias)
        return (answer if bias is None else answer + bias).view(*x.shape[:-1], -1)


class _Multiplied(torch.autograd.Function):
    """``x @ weight.T``, which keeps nothing of the whole weight for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bits: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(values, bits)
        ctx.shape = shape
        return x @ whole(values, bits, shape).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        values, bits = ctx.saved_tensors
        return grads[0] @ whole(values, bits, ctx.shape), None, None, None


def pruned(anatomy: Anatomy, sparsity: float) -> Anatomy:
    """The model with its blocks' linears pruned; all else it shares with the one given.

    Raises:
        ModelError: for a model whose linears are made smaller already.
    """
    return with_linears(anatomy, lambda linear: PrunedLinear(linear, sparsity))
