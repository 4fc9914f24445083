"""What a family of models is, and how its file is found: one module here per family, under 80 lines.

To add a family, write a module beside this one that ends in ``FAMILY = Family(...)``; nothing else
changes. No function of a family may look at a tensor's values: the same code runs on the meta device.

Letters of shapes: N rows, T tokens, D hidden width, H head width; of an image C channels, and its height and
width.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, assert_never

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedray.errors import ModelError

Head = Literal["backbone", "causal_lm", "classification"]
# What a batch calls what goes into the stem: token ids [N, T], or an image a row, [N, C, height, width].
Inputs = Literal["input_ids", "pixel_values"]
# What an axis of a tensor runs over: "qkv" is three times the heads, "rotary" the pairs of a rotating head.
TensorAxis = Literal[
    "vocabulary", "positions", "hidden", "heads", "kv_heads", "qkv", "head_dim", "rotary", "ffn"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every block of one forward pass reads beside the hidden states.

    Attributes:
        mask: added to the attention scores, 0 where a token may look, [N, 1, T, T] or [N, 1, 1, T]; None for
            a family whose tokens all look at all others of their row.
        attention_mask: 1 at real tokens, [N, T].
        rotary: cosine and sine of the positions, [1, T, H] each, for families that rotate.
        input_ids: [N, T]; absent where only hidden states arrived.
        cache: of earlier tokens, as blocks ask it; none but for what stands before the words.
    """

    mask: Tensor | None
    attention_mask: Tensor
    rotary: tuple[Tensor, Tensor] | None = None
    input_ids: Tensor | None = None
    cache: "Cache | None" = None


class Cache(Protocol):
    """Keys and values that a block's attention reads, as transformers asks for them."""

    @property
    def num_tokens(self) -> int:
        """Those that it has before the words."""

    def update(self, keys: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Those of this block with the new ones, [N, G, T, H]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where models of one kind keep their parts, and how these are called.

    Attributes:
        model_types: the ``model_type`` of the configurations it covers.
        heads: the model heads it knows beside the bare backbone.
        targets: the linears LoRA adapts unless told otherwise, by the last part of their path.
        blocks: path of the block list in the backbone.
        stem: paths of the modules before the first block, in the backbone.
        pooler: whether its backbone ends in one that `add_pooling_layer` leaves out.
        max_tokens: the longest row a configuration allows, None without a limit; where images go in, the
            tokens of each. Raises ModelError for a configuration whose arithmetic the family does not follow.
        embed: (backbone, what ``inputs`` names) to hidden [N, T, D].
        context: (backbone, hidden [N, T, D], attention_mask [N, T]) to what the blocks read.
        block: (block, hidden [N, T, D], context) to hidden [N, T, D].
        head: (model, backbone, head, hidden, context) to logits, or the last hidden states.
        axes: what the axes of each module's weight run over, output first, or of a tensor by its own name; by
            the end of a path, of which the longest holds. A bias, or a norm's weight, has the first alone.
        words: path of the word embeddings in the backbone; None where no words go in.
        place: (backbone, words' embeddings [N, T, D]) to hidden [N, T, D]: the rest of ``embed``.
        ia3_outputs: the linears of keys and values, whose outputs IA3 rescales, by their path in a block;
            ``ia3_inputs`` those that read the feed-forward's units.
        ffn_size: what the configuration calls the feed-forward width; absent there, it is 4 D.
        free_heads: whether heads may together be wider or narrower than the hidden states.
        inputs: what goes into the stem.
        class_token: its first token stands for the whole row, and a classifier reads that one alone.
        fuse: makes modules of a backbone faster in their places.
    """

    model_types: tuple[str, ...]
    heads: tuple[Head, ...]
    targets: tuple[str, ...]
    blocks: str
    stem: tuple[str, ...]
    pooler: bool
    max_tokens: Callable[[Any], int | None]
    embed: Callable[[nn.Module, Tensor], Tensor]
    context: Callable[[nn.Module, Tensor, Tensor], Context]
    block: Callable[[nn.Module, Tensor, Context], Tensor]
    head: Callable[[PreTrainedModel, nn.Module, Head, Tensor, Context], Tensor]
    axes: Mapping[str, tuple[TensorAxis | None, ...]]
    words: str | None = None
    place: Callable[[nn.Module, Tensor], Tensor] = lambda backbone, words: words
    ia3_outputs: tuple[str, ...] = ()
    ia3_inputs: tuple[str, ...] = ()
    ffn_size: str = "intermediate_size"
    free_heads: bool = False
    inputs: Inputs = "input_ids"
    class_token: bool = False
    fuse: Callable[[nn.Module], None] | None = None


@cache
def known_families() -> Mapping[str, Family]:
    """Every family found beside this file, by model type."""
    known: dict[str, Family] = {}
    for found in pkgutil.iter_modules(__path__):
        family: Family = importlib.import_module(f"{__name__}.{found.name}").FAMILY
        known |= dict.fromkeys(family.model_types, family)
    return known


def family_of(model_type: str) -> Family:
    """The family of a configuration's ``model_type``. Raises ModelError for an unknown one."""
    known = known_families()
    if model_type not in known:
        raise ModelError(
            f"The model is of type {model_type!r}; known are {', '.join(sorted(known))}. "
            "To add a family, put one file beside llama.py in fedray/model/families."
        )
    return known[model_type]


def causal_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token may look at itself and the real tokens before it, else the least number; [N, 1, T, T].

    Padding looks at itself: with nothing to look at, the fused kernels' backward is wrong by the row length.
    """
    num_tokens = attention_mask.shape[1]
    before = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(num_tokens, dtype=torch.bool, device=attention_mask.device)
    return _additive((before & attention_mask[:, None, None, :].bool()) | itself, dtype)


def padding_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 at real tokens, else the least number; [N, 1, 1, T]. A row of padding alone may look at all."""
    real = attention_mask.bool()
    return _additive((real | ~real.any(dim=1, keepdim=True))[:, None, None, :], dtype)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # Finite, so that no row of scores is all minus infinity, whose softmax is not a number.
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def last_token(hidden: Tensor, context: Context, pad_token_id: int | None) -> Tensor:
    """The hidden states that transformers' decoders classify by: of the last token that is no pad, [N, D].

    Raises:
        ModelError: for several rows when the configuration names no pad token.
    """
    num_rows, num_tokens = hidden.shape[:2]
    if pad_token_id is None and num_rows > 1:
        raise ModelError(f"{num_rows} rows cannot be classified together: set config.pad_token_id.")
    if pad_token_id is None:
        return hidden[:, -1]
    real = context.attention_mask if context.input_ids is None else context.input_ids != pad_token_id
    positions = torch.arange(num_tokens, dtype=torch.int32, device=hidden.device)
    return hidden[torch.arange(num_rows, device=hidden.device), (positions * real.int()).argmax(-1)]


def decoder_head(model: PreTrainedModel, head: Head, normed: Tensor, context: Context) -> Tensor:
    """What transformers' decoders answer to the normed hidden states [N, T, D]."""
    match head:
        case "backbone":
            out = normed
        case "causal_lm":
            out = model.get_submodule("lm_head")(normed)
        case "classification":
            out = model.get_submodule("score")(last_token(normed, context, model.config.pad_token_id))
        case _:
            assert_never(head)
    return out
