"""A narrower model of the same family: which entries of every tensor it keeps, and the model itself.

What a tensor's axes run over is declared by its family, once; nothing here knows one from another. The
narrower model is an ordinary one with a smaller configuration. Its arithmetic is its own: norms run over
the hidden units that it keeps, and attention scores are divided by the root of its own head width.
"""

import copy
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import assert_never

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedray.adapter import Place, part_of
from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.families import TensorAxis
from fedray.model.load import TORCH_DTYPES, TaskHead, empty_backbone
from fedray.width import Axis, Indices, Width

# Their frequencies follow from the base alone, so that those of leading pairs are a smaller base's.
_SLICED_ROPE = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The widths of a model: hidden states, heads, those of keys and values, one head, feed-forward."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


def sizes_of(anatomy: Anatomy) -> Sizes:
    """As the configuration says."""
    config = anatomy.model.config
    said, hidden, heads = config.to_dict(), int(config.hidden_size), int(config.num_attention_heads)
    return Sizes(
        hidden=hidden,
        heads=heads,
        kv_heads=int(said.get("num_key_value_heads") or heads),
        head_dim=int(said.get("head_dim") or hidden // heads),
        ffn=int(said.get(anatomy.family.ffn_size) or 4 * hidden),
    )


def narrowed_sizes(anatomy: Anatomy, width: Width) -> Sizes:
    """The widths that are left. Raises ModelError for a width that no model of the family can have."""
    whole, config = sizes_of(anatomy), anatomy.model.config
    kv_heads = width.kept("heads", whole.kv_heads)
    dim_units = 2 if _rotates(anatomy) else 1
    sizes = Sizes(
        hidden=width.kept("hidden", whole.hidden),
        heads=whole.heads // whole.kv_heads * kv_heads,
        kv_heads=kv_heads,
        head_dim=dim_units * width.kept("head_dim", whole.head_dim // dim_units),
        ffn=width.kept("ffn", whole.ffn),
    )
    if not anatomy.family.free_heads and sizes.heads * sizes.head_dim != sizes.hidden:
        raise ModelError(
            f"In a {config.model_type} model heads are together as wide as hidden states, and a width "
            f"{width} leaves {sizes.heads} heads of {sizes.head_dim} beside a hidden width of "
            f"{sizes.hidden}; choose the axis ffn alone, or hidden with heads or head_dim and a share that "
            "divides both alike."
        )
    if sizes == whole:
        raise ModelError(
            f"A width {width} leaves this {config.model_type} model of {whole.kv_heads} groups of heads of "
            f"{whole.head_dim} as it is; choose a smaller share or other axes."
        )
    if _rotates(anatomy) and sizes.head_dim < whole.head_dim:
        _check_rotary(width, config)
    return sizes


def _check_rotary(width: Width, config: PreTrainedConfig) -> None:
    kind = config.rope_parameters["rope_type"]
    if width.window != "prefix" or kind not in _SLICED_ROPE:
        raise ModelError(
            f"Rotary heads are narrowed to their leading pairs, whose frequencies a smaller model has, too; "
            f"found a {width.window} window and rope_type {kind!r}. Leave head_dim out, or take a prefix."
        )


def narrowed_config(anatomy: Anatomy, width: Width) -> PreTrainedConfig:
    """The configuration of the narrower model. Raises ModelError as `narrowed_sizes` does."""
    whole, sizes = sizes_of(anatomy), narrowed_sizes(anatomy, width)
    config = copy.deepcopy(anatomy.model.config)
    config.hidden_size, config.num_attention_heads = sizes.hidden, sizes.heads
    setattr(config, anatomy.family.ffn_size, sizes.ffn)
    if anatomy.family.free_heads:
        config.num_key_value_heads, config.head_dim = sizes.kv_heads, sizes.head_dim
        # theta ** (-2 i / d) of the leading pairs i is that of a head of d' with this base.
        rope = dict(config.rope_parameters)
        rope["rope_theta"] = rope["rope_theta"] ** (sizes.head_dim / whole.head_dim)
        config.rope_parameters = rope
    return config


def places_of(anatomy: Anatomy, width: Width | None) -> dict[str, Place]:
    """Where the entries of a narrower model's tensors lie in the model's own, by name.

    Tensors that it keeps whole are left out, and so is everything without a width.

    Raises:
        ModelError: for a width that no model of the family can have, or a parameter that the family's
            `axes` do not name.
        ConfigError: for a salient window of a model whose units nobody has put in order.
    """
    if width is None:
        return {}
    narrowed_sizes(anatomy, width)
    kept = cache(partial(_kept, anatomy, width))
    places = {}
    for name, tensor in tensors_of(anatomy.model):
        block = block_of(anatomy, name)
        own = tuple(None if axis is None else kept(axis, block) for axis in axes_of(anatomy, name, tensor))
        if any(indices is not None for indices in own):
            places[name] = own
    return places


def head_place(anatomy: Anatomy, width: Width | None) -> Place | None:
    """Where the inputs of a narrower classifier's weight [K, D] lie; None for all of them."""
    if width is None:
        return None
    own = _kept(anatomy, width, "hidden", -1)
    return None if own is None else (None, own)


def narrowed(anatomy: Anatomy, width: Width | None) -> Anatomy:
    """The narrower model with its own copies of what it keeps; on the meta device shapes alone.

    Without a width the model itself.

    Raises:
        ModelError: as `places_of` does.
    """
    if width is None:
        return anatomy
    places, whole = places_of(anatomy, width), anatomy.model
    dtype = next(dtype for dtype, torchs in TORCH_DTYPES.items() if torchs == whole.dtype)
    head: TaskHead = "classification" if anatomy.head_kind == "backbone" else "causal_lm"
    model = empty_backbone(narrowed_config(anatomy, width), head, dtype)
    for name, tensor in tensors_of(whole):
        part = part_of(tensor.detach(), places.get(name))
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(part, requires_grad=False)
        else:
            module._buffers[leaf] = part
    model.tie_weights()
    return dissect(model)


def tensors_of(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """A model's parameters and buffers by name."""
    return list(chain(model.named_parameters(), model.named_buffers()))


def _rotates(anatomy: Anatomy) -> bool:
    return anatomy.model.config.to_dict().get("rope_parameters") is not None


def block_of(anatomy: Anatomy, name: str) -> int:
    """The block that a tensor belongs to, -1 for stem and head."""
    before, found, after = name.partition(f"{anatomy.family.blocks}.")
    inside = found and (not before or before.endswith(".")) and after.partition(".")[0].isdigit()
    return int(after.partition(".")[0]) if inside else -1


def axes_of(anatomy: Anatomy, name: str, tensor: Tensor) -> tuple[TensorAxis | None, ...]:
    """What each axis of a tensor runs over. Raises ModelError for one that the family does not name."""
    path, _, leaf = name.rpartition(".")
    known = anatomy.family.axes
    fitting = [end for end in known if f".{name}".endswith(f".{end}") or f".{path}".endswith(f".{end}")]
    if not fitting and leaf in anatomy.model.get_submodule(path)._buffers:
        return (None,) * tensor.dim()
    if not fitting:
        raise ModelError(
            f"What the axes of {name} run over is not known for {anatomy.model.config.model_type} models; "
            "name it in the family's axes, or leave the width whole."
        )
    axes = known[max(fitting, key=len)]
    if tensor.dim() > 1 and isinstance(anatomy.model.get_submodule(path), Conv1D):
        return axes[::-1]
    return axes[: tensor.dim()]


def _kept(anatomy: Anatomy, width: Width, axis: TensorAxis, block: int) -> Tensor | None:
    """The entries of a tensor's axis that are kept, None for all of them: those whose units are."""
    own = np.array(True)
    for unit_axis, units in units_of(anatomy, axis).items():
        place = -1 if unit_axis == "hidden" else block
        order = None if anatomy.unit_order is None or width.window != "salient" else anatomy.unit_order()
        kept = width.indices(unit_axis, num_units(anatomy, unit_axis), place, order)
        own = own & np.isin(units, kept)
    return None if own.all() else torch.from_numpy(np.flatnonzero(own))


def num_units(anatomy: Anatomy, axis: Axis) -> int:
    """How many units an axis has: heads of keys and values, and inside a rotary head pairs."""
    sizes = sizes_of(anatomy)
    match axis:
        case "hidden":
            return sizes.hidden
        case "heads":
            return sizes.kv_heads
        case "head_dim":
            return sizes.head_dim // 2 if _rotates(anatomy) else sizes.head_dim
        case "ffn":
            return sizes.ffn
        case _:
            assert_never(axis)


def units_of(anatomy: Anatomy, axis: TensorAxis | None) -> dict[Axis, Indices]:
    """The units that each entry of a tensor's axis belongs to, by the axes that widths are shares of.

    Nothing for an axis that is never narrowed.
    """
    sizes = sizes_of(anatomy)
    half, group = sizes.head_dim // 2, sizes.heads // sizes.kv_heads
    # The two of a rotary pair lie half a head apart.
    dims = np.arange(sizes.head_dim) % half if _rotates(anatomy) else np.arange(sizes.head_dim)
    queries, keys = _of_heads(sizes.heads, group, dims), _of_heads(sizes.kv_heads, 1, dims)
    known: dict[TensorAxis | None, dict[Axis, Indices]] = {
        "hidden": {"hidden": np.arange(sizes.hidden)},
        "ffn": {"ffn": np.arange(sizes.ffn)},
        "heads": queries,
        "kv_heads": keys,
        "qkv": {unit_axis: np.tile(units, 3) for unit_axis, units in queries.items()},
        "head_dim": {"head_dim": dims},
        "rotary": {"head_dim": np.arange(half)},
    }
    return known.get(axis, {})


def _of_heads(num_heads: int, group: int, dims: Indices) -> dict[Axis, Indices]:
    """Of heads beside each other, of which so many share keys and values."""
    return {
        "heads": np.repeat(np.arange(num_heads) // group, len(dims)),
        "head_dim": np.tile(dims, num_heads),
    }
