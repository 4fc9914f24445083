"""ViT (2010.11929): patches of an image behind a class token, all looking at all; classification only."""

from typing import Any, assert_never

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedray.errors import ModelError
from fedray.model.families import Context, Family, Head


def _max_tokens(config: Any) -> int | None:
    height, width = _pair(config.image_size)
    patch_height, patch_width = _pair(config.patch_size)
    return (height // patch_height) * (width // patch_width) + 1


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _embed(backbone: nn.Module, pixel_values: Tensor) -> Tensor:
    dtype = backbone.get_parameter("embeddings.cls_token").dtype
    hidden: Tensor = backbone.get_submodule("embeddings")(pixel_values.to(dtype))
    return hidden


def _context(backbone: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Context:
    return Context(mask=None, attention_mask=attention_mask)


def _block(block: nn.Module, hidden: Tensor, context: Context) -> Tensor:
    out: Tensor = block(hidden)
    return out


def _head(
    model: PreTrainedModel, backbone: nn.Module, head: Head, hidden: Tensor, context: Context
) -> Tensor:
    normed: Tensor = backbone.get_submodule("layernorm")(hidden)
    match head:
        case "backbone":
            out = normed
        case "classification":
            out = model.get_submodule("classifier")(normed[:, 0])
        case "causal_lm":
            raise ModelError(f"A {model.config.model_type!r} model has no causal language model head.")
        case _:
            assert_never(head)
    return out


FAMILY = Family(
    model_types=("vit",),
    heads=("classification",),
    targets=("q_proj", "v_proj"),
    blocks="layers",
    stem=("embeddings",),
    pooler=True,
    max_tokens=_max_tokens,
    embed=_embed,
    context=_context,
    block=_block,
    head=_head,
    axes={
        "cls_token": (None, None, "hidden"),
        "position_embeddings": (None, "positions", "hidden"),
        "patch_embeddings.projection": ("hidden", None, None, None),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("heads", "hidden")),
        "o_proj": ("hidden", "heads"),
        "fc1": ("ffn", "hidden"),
        "fc2": ("hidden", "ffn"),
        **dict.fromkeys(("layernorm_before", "layernorm_after", "layernorm"), ("hidden",)),
    },
    inputs="pixel_values",
    class_token=True,
)
