"""What one client can hold, as a model of its own: some blocks, part of the width, few bits, LoRA merged.

Letters of shapes: I and O a linear's input and output width.
"""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedray.adapter import Adapter, Factors
from fedray.assignment import WeightBits
from fedray.model.anatomy import Anatomy, backbone_prefix
from fedray.model.compact import weight_of
from fedray.model.load import TORCH_DTYPES, TaskHead, empty_backbone
from fedray.model.pruned import prune, whole
from fedray.model.quantized import dequantise, quantise
from fedray.model.slices import narrowed
from fedray.width import Width


def submodel(
    anatomy: Anatomy,
    adapter: Adapter,
    *,
    blocks: Sequence[int],
    width: Width | None = None,
    bits: WeightBits | None = None,
    sparsity: float = 0.0,
) -> PreTrainedModel:
    """An ordinary model of the family with a client's weights, which nothing of the given one shares.

    Args:
        anatomy: of the whole model; not changed.
        adapter: the client's: factors by the whole model's sites, its own weights as wide as it is.
        blocks: that it runs, ascending.
        width: the part of every block that it has; None for all.
        bits: that its frozen linears were rounded to; None for the dtype's own. LoRA is added after rounding.
        sparsity: share of their weights that are zero.

    Raises:
        ModelError: for a width that no model of the family can have.
    """
    part = narrowed(anatomy, width)
    weights = {name: tensor.detach().clone() for name, tensor in part.model.named_parameters()}
    root = backbone_prefix(part.model)
    for block in blocks:
        for site, linear in part.linears(block).items():
            weights[f"{root}{site}.weight"] = _as_held(linear, bits, sparsity)
    for name, tensor in adapter.weights.items():
        weights[name] = tensor.to(weights[name].dtype)
    for site, factors in adapter.factors.items():
        linear = part.backbone.get_submodule(site)
        weights[f"{root}{site}.weight"] += _product(factors, linear).to(part.model.dtype)
    return _of_blocks(part, weights, blocks)


def _as_held(linear: nn.Module, bits: WeightBits | None, sparsity: float) -> Tensor:
    own = weight_of(linear)
    if sparsity:
        own = whole(*prune(own, sparsity), (own.shape[0], own.shape[1]))
    if bits is not None:
        own = dequantise(*quantise(own, bits), own.shape[1], own.dtype)
    return (own.T if isinstance(linear, Conv1D) else own).contiguous().clone()


def _product(factors: Factors, linear: nn.Module) -> Tensor:
    """``scale * b @ a`` as the linear keeps its weight: [O, I], or [I, O] in a Conv1D."""
    product = factors.scale * (factors.b.float() @ factors.a.float())
    return product.T if isinstance(linear, Conv1D) else product


def _of_blocks(part: Anatomy, weights: Mapping[str, Tensor], blocks: Sequence[int]) -> PreTrainedModel:
    """The model of these blocks alone, numbered from 0."""
    config = copy.deepcopy(part.model.config)
    config.num_hidden_layers = len(blocks)
    dtype = next(dtype for dtype, torchs in TORCH_DTYPES.items() if torchs == part.model.dtype)
    head: TaskHead = "classification" if part.head_kind == "backbone" else "causal_lm"
    model = empty_backbone(config, head, dtype)
    root = backbone_prefix(part.model)
    moved = {
        f"{root}{part.family.blocks}.{place}.": f"{root}{part.block_path(block)}"
        for place, block in enumerate(blocks)
    }
    buffers = dict(part.model.named_buffers())
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        source = next(
            (old + name.removeprefix(new) for new, old in moved.items() if name.startswith(new)), name
        )
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(weights[source], requires_grad=False)
        else:
            module._buffers[leaf] = buffers[source].detach().clone()
    model.tie_weights()
    return model


def last_head(head: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the head that a client's model ends in, by their own names.

    Args:
        head: of the client, by flat name.
        prefixes: of its heads; the last one's is empty, or else that of the deepest exit.
    """
    own = "" if "" in prefixes else prefixes[-1] if prefixes else ""
    names = ("weight", "bias")
    return {name: head[f"{own}{name}"] for name in names if f"{own}{name}" in head}
