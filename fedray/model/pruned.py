"""Frozen linears of which the smallest weights are zero: a bit for each place and the numbers that are left.

Magnitude pruning (1506.02626) of each weight by itself, unstructured: where zeros lie says nothing of what a
product costs, which is that of a whole weight, made when it multiplies and dropped again, forward and
backward. So a client stores and is sent less, holds less between products, and computes as much. Embeddings,
norms and biases stay as they are. Fewer units in all, which saves arithmetic too, are `fedray.width`'s.

Letters of shapes: I and O a linear's input and output width, N = O * I, K numbers that are left.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.model.anatomy import Anatomy
from fedray.model.compact import CompactLinear, weight_of, with_linears


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


def pruned(anatomy: Anatomy, sparsity: float) -> Anatomy:
    """The model with its blocks' linears pruned; all else it shares with the one given.

    Raises:
        ModelError: for a model whose linears are made smaller already.
    """
    return with_linears(anatomy, lambda linear: _prune_linear(linear, sparsity))


def _prune_linear(linear: nn.Linear | Conv1D, sparsity: float) -> None:
    weight = weight_of(linear)
    values, bits = prune(weight, sparsity)
    shape = (weight.shape[0], weight.shape[1])
    # Values are in the dtype of the arithmetic already.
    CompactLinear(
        linear, {"kept_weights": values, "kept_places": bits}, lambda kept, _: whole(kept[0], kept[1], shape)
    )
