"""BERT, RoBERTa and MiniLM: encoders that look both ways; classification only."""

from typing import Any, assert_never, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedray.errors import ModelError
from fedray.model.families import Context, Family, Head, padding_mask


def _max_tokens(config: Any) -> int | None:
    if config.is_decoder:
        raise ModelError(f"{config.model_type!r} with is_decoder = true is no encoder; set it to false.")
    # RoBERTa numbers its positions from pad_token_id + 1.
    return int(config.max_position_embeddings - (config.pad_token_id + 1) * (config.model_type == "roberta"))


def _embed(backbone: nn.Module, input_ids: Tensor) -> Tensor:
    return cast(Tensor, backbone.get_submodule("embeddings")(input_ids=input_ids))


def _place(backbone: nn.Module, words: Tensor) -> Tensor:
    return cast(Tensor, backbone.get_submodule("embeddings")(inputs_embeds=words))


def _context(backbone: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Context:
    return Context(mask=padding_mask(attention_mask, hidden.dtype), attention_mask=attention_mask)


def _block(block: nn.Module, hidden: Tensor, context: Context) -> Tensor:
    return cast(Tensor, block(hidden, context.mask, past_key_values=context.cache))


def _head(
    model: PreTrainedModel, backbone: nn.Module, head: Head, hidden: Tensor, context: Context
) -> Tensor:
    match head:
        case "backbone":
            out = hidden
        case "classification":
            bert = model.config.model_type == "bert"  # RoBERTa's classifier pools by itself
            out = model.get_submodule("classifier")(
                backbone.get_submodule("pooler")(hidden) if bert else hidden
            )
        case "causal_lm":
            raise ModelError(f"A {model.config.model_type!r} model has no causal language model head.")
        case _:
            assert_never(head)
    return out


FAMILY = Family(
    model_types=("bert", "roberta"),
    heads=("classification",),
    targets=("query", "value"),
    blocks="encoder.layer",
    stem=("embeddings",),
    pooler=True,
    max_tokens=_max_tokens,
    embed=_embed,
    context=_context,
    block=_block,
    words="embeddings.word_embeddings",
    place=_place,
    ia3_outputs=("attention.self.key", "attention.self.value"),
    ia3_inputs=("output.dense",),
    head=_head,
    axes={
        "word_embeddings": ("vocabulary", "hidden"),
        "position_embeddings": ("positions", "hidden"),
        "token_type_embeddings": (None, "hidden"),
        "LayerNorm": ("hidden",),
        **dict.fromkeys(("query", "key", "value"), ("heads", "hidden")),
        "attention.output.dense": ("hidden", "heads"),
        "intermediate.dense": ("ffn", "hidden"),
        "output.dense": ("hidden", "ffn"),
    },
)
