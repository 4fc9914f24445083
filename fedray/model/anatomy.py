"""A Hugging Face model taken apart: ``head(blocks(stem(x)))`` is the model's own forward pass.

Nothing here looks at a tensor's values, so the same calls train on a device and trace on torch's meta
device. A *site* is a linear's path in the backbone (``encoder.layer.0.attention.self.query``): the same
with any head on top.

Letters of shapes: N rows, T tokens, D hidden width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from fedray.errors import ModelError
from fedray.model.families import Cache, Context, Family, Head, family_of
from fedray.width import UnitOrder


@dataclass(frozen=True, slots=True)
class Flow:
    """What leaves the stem: hidden states [N, T, D], and what all blocks read beside them."""

    hidden: Tensor
    context: Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A model's parts; made by `dissect`.

    Attributes:
        model: the model itself, with its head if it has one.
        backbone: the same without head; sites are paths in it.
        head_kind: what `head` answers: logits, or hidden states for a bare backbone.
        max_tokens: the longest row the model takes, None without a limit; of images the length of each.
        unit_order: finds the order of its units by salience, for who narrows it by that.
    """

    model: PreTrainedModel
    backbone: nn.Module
    family: Family
    head_kind: Head
    blocks: Sequence[nn.Module]
    max_tokens: int | None
    unit_order: Callable[[], UnitOrder] | None = None

    @property
    def num_blocks(self) -> int:
        """L: cuts run from 0 to it."""
        return len(self.blocks)

    @property
    def takes_text(self) -> bool:
        """Token ids go in, and rows are of unlike length; images are all alike."""
        return self.family.inputs == "input_ids"

    def stem(
        self,
        inputs: Tensor,
        attention_mask: Tensor,
        prompt: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Flow:
        """What goes in to what the first block reads. Raises ModelError for rows that are too long.

        Args:
            inputs: what the batch calls ``family.inputs``: token ids [N, T], or images [N, C, height, width].
            attention_mask: 1 at real tokens, [N, T]; all of an image's are.
            prompt: of each row, [N, P, D], before its words; what the blocks read is then [N, P + T, D].
            cache: what blocks read beside the words; these stand behind the tokens that it has.
        """
        if cache is not None and cache.num_tokens:
            flow = self._behind(inputs, attention_mask, prompt, cache.num_tokens)
            return replace(flow, context=replace(flow.context, cache=cache))
        if prompt is not None:
            attention_mask = torch.cat([attention_mask.new_ones(prompt.shape[:2]), attention_mask], dim=1)
        num_tokens = attention_mask.shape[1]
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise ModelError(
                f"Rows of {num_tokens} tokens were given; this {self.model.config.model_type} model "
                f"takes at most {self.max_tokens}. Lower the task's max_length."
            )
        if prompt is not None:
            return self._after_prompt(prompt, inputs, attention_mask)
        hidden = self.family.embed(self.backbone, inputs)
        context = self.context(hidden, attention_mask)
        return Flow(hidden, replace(context, input_ids=inputs if self.takes_text else None, cache=cache))

    def _behind(
        self, input_ids: Tensor, attention_mask: Tensor, prompt: Tensor | None, num_before: int
    ) -> Flow:
        """What follows so many tokens, at the positions after them, and what it may look at, them too."""
        assert self.family.words is not None, "a prefix is refused where no words go in"
        width = self.backbone.get_parameter(f"{self.family.words}.weight").shape[1]
        held = attention_mask.new_zeros(()).expand(len(attention_mask), num_before, width)
        flow = self.stem(
            input_ids, attention_mask, held if prompt is None else torch.cat([held, prompt], dim=1)
        )
        context = flow.context
        mask, rotary = context.mask, context.rotary
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, num_before:]
        if rotary is not None:
            rotary = rotary[0][:, num_before:], rotary[1][:, num_before:]
        seen = context.attention_mask[:, num_before:]
        ids = input_ids if prompt is None else None
        own = replace(context, mask=mask, rotary=rotary, attention_mask=seen, input_ids=ids)
        return Flow(flow.hidden[:, num_before:], own)

    def _after_prompt(self, prompt: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Flow:
        assert self.family.words is not None, "a prompt is refused where no words go in"
        words: Tensor = self.backbone.get_submodule(self.family.words)(input_ids)
        rows = torch.cat([prompt.to(words.dtype), words.expand(len(prompt), -1, -1)], dim=1)
        hidden = self.family.place(self.backbone, rows)
        return Flow(hidden, self.context(hidden, attention_mask))

    def context(self, hidden: Tensor, attention_mask: Tensor) -> Context:
        """What blocks read beside hidden states [N, T, D], for who was sent these and the mask alone."""
        return self.family.context(self.backbone, hidden, attention_mask)

    def block(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """One block, [N, T, D] to [N, T, D]."""
        return self.family.block(self.blocks[index], hidden, context)

    def head(self, hidden: Tensor, context: Context) -> Tensor:
        """The last block's hidden states to what the model itself answers.

        [N, T, vocabulary] for a causal LM, [N, labels] for sequence classification, and the last hidden
        states [N, T, D], through the final norm if there is one, for a bare backbone.
        """
        return self.family.head(self.model, self.backbone, self.head_kind, hidden, context)

    def read_by_classifier(self, attention_mask: Tensor) -> Tensor | None:
        """1 at the tokens whose mean a trained classifier reads, [N, T]; None: it reads the first alone."""
        return None if self.family.class_token else attention_mask

    def block_path(self, index: int) -> str:
        """The prefix of a block's names in the backbone, such as ``"encoder.layer.3."``."""
        return f"{self.family.blocks}.{range(self.num_blocks)[index]}."

    def linears(self, index: int) -> dict[str, nn.Module]:
        """A block's linears (nn.Linear, or GPT-2's Conv1D) by site, in the order of the module tree."""
        path = self.block_path(index)
        return {
            path + name: module
            for name, module in self.blocks[index].named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }

    def sites(self, index: int, targets: Sequence[str]) -> list[str]:
        """A block's linears whose last part of the name is a target. Raises ModelError for one it lacks."""
        linears = self.linears(index)
        ends = [site.rpartition(".")[2] for site in linears]
        missing = [target for target in targets if target not in ends]
        if missing:
            raise ModelError(
                f"No linear is called {', '.join(missing)} in block {index} of this "
                f"{self.model.config.model_type} model; it has {', '.join(sorted(set(ends)))}."
            )
        return [site for site, end in zip(linears, ends, strict=True) if end in targets]

    def pieces(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the model's parameters and buffers by piece: "stem", "block.0", ..., "head".

        A tied weight is counted once, in the first piece that holds it, as the model's own
        ``named_parameters`` does.
        """
        root = backbone_prefix(self.model)
        prefixes = {root + self.block_path(i): f"block.{i}" for i in range(self.num_blocks)}
        prefixes |= {f"{root}{path}.": "stem" for path in self.family.stem}
        names: dict[str, list[str]] = {"stem": []}
        names |= {f"block.{i}": [] for i in range(self.num_blocks)} | {"head": []}
        for name, _ in chain(self.model.named_parameters(), self.model.named_buffers()):
            piece = next((piece for prefix, piece in prefixes.items() if name.startswith(prefix)), "head")
            names[piece].append(name)
        return {piece: tuple(held) for piece, held in names.items()}

    def piece_bytes(self) -> dict[str, int]:
        """Bytes of the model's parameters and buffers by piece."""
        state = dict(chain(self.model.named_parameters(), self.model.named_buffers()))
        return {
            piece: sum(state[name].numel() * state[name].element_size() for name in names)
            for piece, names in self.pieces().items()
        }


def dissect(model: PreTrainedModel) -> Anatomy:
    """Take a model apart, switch its own dropout off, and fuse what its family can.

    Raises:
        ModelError: for an unknown family, or a head its family does not have.
    """
    family = family_of(model.config.model_type)
    head_kind = _head_kind(model)
    if head_kind != "backbone" and head_kind not in family.heads:
        raise ModelError(refused_head(model.config.model_type, head_kind, family))
    model.train(False)
    backbone = model.base_model
    if family.fuse is not None:
        family.fuse(backbone)
    blocks = backbone.get_submodule(family.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"{type(backbone).__name__}.{family.blocks} is no list of blocks.")
    return Anatomy(
        model=model,
        backbone=backbone,
        family=family,
        head_kind=head_kind,
        blocks=tuple(blocks),
        max_tokens=family.max_tokens(model.config),
    )


def refused_head(model_type: str, head: Head, family: Family) -> str:
    """The sentence for a head that a family does not have."""
    return (
        f"A {model_type!r} model was asked for a {head} head; its family has {', '.join(family.heads)}. "
        f"Choose a task with such a head, or a model of another family."
    )


def backbone_prefix(model: PreTrainedModel) -> str:
    """What a site's path lacks to be a path in the model: nothing in a bare backbone, or ``"model."``."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _head_kind(model: PreTrainedModel) -> Head:
    name, model_type = type(model).__name__, model.config.model_type
    if model.base_model is model:
        return "backbone"
    if name == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type):
        return "causal_lm"
    if name in (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model_type),
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(model_type),
    ):
        return "classification"
    raise ModelError(
        f"{name} has a head that is not known here; load the model through AutoModel, AutoModelForCausalLM, "
        "AutoModelForSequenceClassification or AutoModelForImageClassification."
    )
