"""Llama and the models built like it: Mistral, Qwen2, Qwen3 (rotary positions, RMS norms, causal)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedray.errors import ModelError
from fedray.model.families import Context, Family, Head, causal_mask, decoder_head
from fedray.model.fused import fuse_decoder


def _max_tokens(config: Any) -> int | None:
    rope = config.rope_parameters["rope_type"]
    # These recompute their frequencies from the positions they meet, which the meta device does not have.
    if rope in ("dynamic", "longrope"):
        raise ModelError(f"rope_type {rope!r} depends on a batch's values and cannot be traced; use another.")
    # Up to the window's length a sliding mask is the plain causal one, so only longer rows are refused.
    kind = config.model_type
    slides = kind == "mistral" or (kind != "llama" and "sliding_attention" in config.layer_types)
    return config.sliding_window if slides else None


def _embed(backbone: nn.Module, input_ids: Tensor) -> Tensor:
    return cast(Tensor, backbone.get_submodule("embed_tokens")(input_ids))


def _context(backbone: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Context:
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    # Past the module's hooks: it has no weights, and an engine in shards counts calls, which differ by shard.
    rotary = cast(Callable[..., tuple[Tensor, Tensor]], backbone.get_submodule("rotary_emb").forward)
    return Context(
        mask=causal_mask(attention_mask, hidden.dtype),
        attention_mask=attention_mask,
        rotary=rotary(hidden, position_ids=positions),
    )


def _block(block: nn.Module, hidden: Tensor, context: Context) -> Tensor:
    return cast(Tensor, block(hidden, context.mask, None, context.cache, position_embeddings=context.rotary))


def _head(
    model: PreTrainedModel, backbone: nn.Module, head: Head, hidden: Tensor, context: Context
) -> Tensor:
    return decoder_head(model, head, backbone.get_submodule("norm")(hidden), context)


FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    heads=("causal_lm", "classification"),
    targets=("q_proj", "v_proj"),
    blocks="layers",
    stem=("embed_tokens", "rotary_emb"),
    pooler=False,
    max_tokens=_max_tokens,
    embed=_embed,
    context=_context,
    block=_block,
    words="embed_tokens",
    ia3_outputs=("self_attn.k_proj", "self_attn.v_proj"),
    ia3_inputs=("mlp.down_proj",),
    head=_head,
    axes={
        **dict.fromkeys(("embed_tokens", "lm_head"), ("vocabulary", "hidden")),
        "q_proj": ("heads", "hidden"),
        **dict.fromkeys(("k_proj", "v_proj"), ("kv_heads", "hidden")),
        "o_proj": ("hidden", "heads"),
        **dict.fromkeys(("q_norm", "k_norm"), ("head_dim",)),
        **dict.fromkeys(("gate_proj", "up_proj"), ("ffn", "hidden")),
        "down_proj": ("hidden", "ffn"),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm", "norm"), ("hidden",)),
        **dict.fromkeys(("inv_freq", "original_inv_freq"), ("rotary",)),
    },
    free_heads=True,
    fuse=fuse_decoder,
)
