"""GPT-2: learned positions, layer norms, causal; its linears are transformers' transposed Conv1D."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedray.model.families import Context, Family, Head, causal_mask, decoder_head


def _max_tokens(config: Any) -> int | None:
    return int(config.max_position_embeddings)


def _embed(backbone: nn.Module, input_ids: Tensor) -> Tensor:
    return _place(backbone, backbone.get_submodule("wte")(input_ids))


def _place(backbone: nn.Module, words: Tensor) -> Tensor:
    positions = torch.arange(words.shape[1], device=words.device)[None]
    hidden: Tensor = words + backbone.get_submodule("wpe")(positions)
    return hidden


def _context(backbone: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Context:
    return Context(mask=causal_mask(attention_mask, hidden.dtype), attention_mask=attention_mask)


def _block(block: nn.Module, hidden: Tensor, context: Context) -> Tensor:
    out: Tensor = block(hidden, attention_mask=context.mask, past_key_values=context.cache)
    return out


def _head(
    model: PreTrainedModel, backbone: nn.Module, head: Head, hidden: Tensor, context: Context
) -> Tensor:
    return decoder_head(model, head, backbone.get_submodule("ln_f")(hidden), context)


FAMILY = Family(
    model_types=("gpt2",),
    heads=("causal_lm", "classification"),
    targets=("c_attn",),
    blocks="h",
    stem=("wte", "wpe"),
    pooler=False,
    max_tokens=_max_tokens,
    embed=_embed,
    context=_context,
    block=_block,
    words="wte",
    place=_place,
    ia3_outputs=("attn.c_attn",),  # keys, values and, as PEFT has it, queries: one linear
    ia3_inputs=("mlp.c_proj",),
    head=_head,
    axes={
        "wte": ("vocabulary", "hidden"),
        "wpe": ("positions", "hidden"),
        "ln_1": ("hidden",),
        "attn.c_attn": ("qkv", "hidden"),
        "attn.c_proj": ("hidden", "heads"),
        "ln_2": ("hidden",),
        "mlp.c_fc": ("ffn", "hidden"),
        "mlp.c_proj": ("hidden", "ffn"),
        "ln_f": ("hidden",),
        "lm_head": ("vocabulary", "hidden"),
    },
    ffn_size="n_inner",
)
