"""What a client trains beside the head: LoRA factors, weights of the model's own, a few beside, a prompt."""

import math
from dataclasses import dataclass
from typing import Literal

from fedray.errors import ConfigError

Part = Literal["all", "bias", "ia3"]
PARTS: dict[Part, str] = {"all": "all weights", "bias": "biases", "ia3": "IA3 vectors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """LoRA (2106.09685) on chosen linears, with a rank of its own in every block.

    Attributes:
        ranks: one per block, in order; 0 leaves that block frozen. Of the blocks the client executes,
            or, under a cut, of the whole model: the server's blocks have ranks too.
        targets: the adapted linears by the last part of their module name (``"query"``, ``"q_proj"``).
        scale: alpha / rank, the factor on B A. One scale for all ranks keeps a rank a matter of
            capacity and not of step size.
        train_a: false leaves A as it was drawn before round 1 and trains B alone (FFA-LoRA, 2403.12313): A
            has no gradient and no optimizer state, and is sent neither way: it follows from the run's seed.
    """

    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    scale: float = 2.0
    train_a: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly:
    """No adapter: the task's head alone is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The model's own weights, trained as they are: full fine-tuning, or the biases; or a few beside them.

    Attributes:
        part: ``"all"`` of a trained block's weights, ``"bias"`` (BitFit, 2106.10199), or ``"ia3"``, which are
            vectors that rescale its keys, values and feed-forward units (2205.05638).
        trained: of each block the client executes, in order, whether it is trained.
        stem: the embeddings too, and with them what stands after the last block; needs every block.
    """

    part: Part
    trained: tuple[bool, ...]
    stem: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Tokens that are trained before the words, and a gradient through every block.

    Attributes:
        num_tokens: of the prompt; fewer than another client's are the first of that one's.
        deep: keys and values of their own in every block (prefix tuning, 2101.00190); else embeddings, which
            go through the blocks as words do (prompt tuning, 2104.08691).
    """

    num_tokens: int
    deep: bool = False

    @property
    def word(self) -> str:
        """What it is called in tables."""
        return "prefix" if self.deep else "prompt"


def check_prompt(prompt: Prompt, *, split: bool, up_codec: str) -> None:
    """Raises ConfigError for what a prompt cannot be or have beside it."""
    if split:
        raise ConfigError(
            "Under a cut the server serves rows without prompts; train LoRA ranks there, or give the client "
            "the whole model."
        )
    if prompt.num_tokens < 1:
        raise ConfigError(f"A prompt has at least 1 token, found {prompt.num_tokens}.")
    if up_codec.startswith(("top", "rank")):
        raise ConfigError(
            f"Prompts may be of other lengths from round to round, and up_codec {up_codec} owes "
            "what it left out of them; choose bf16, int8, int4 or none."
        )


def check_weights(weights: Weights, *, split: bool, num_blocks: int) -> None:
    """Raises ConfigError for what weights cannot be, of so many executed blocks."""
    if split:
        raise ConfigError(
            "Under a cut the server's weights are frozen and shared; train LoRA ranks there, or give the "
            "client the whole model."
        )
    if len(weights.trained) != num_blocks or not any(weights.trained):
        raise ConfigError(
            f"Weights tell of each of {num_blocks} executed blocks whether it is trained, at least one "
            f"of them; found {weights.trained}."
        )
    if weights.stem and weights.part == "ia3":
        raise ConfigError("IA3 rescales what blocks compute, and the stem has none of that; drop stem.")
    if weights.stem and not all(weights.trained):
        raise ConfigError("The stem's weights are trained with those of every block, or not at all.")


def check_lora(lora: Lora, *, split: bool, num_blocks: int, tail: int) -> None:
    """Raises ConfigError for what factors cannot be, of so many executed blocks."""
    num_ranks = len(lora.ranks)
    if not split and num_ranks != num_blocks:
        raise ConfigError(f"Lora needs one rank per block: {num_blocks} blocks, {num_ranks} ranks.")
    if split and num_blocks + tail >= num_ranks:
        raise ConfigError(
            f"A cut leaves the server at least one block: {num_blocks} blocks and a tail of {tail} "
            f"are all {num_ranks}; lower the cut, or give the whole model."
        )
    if min(lora.ranks) < 0 or max(lora.ranks) == 0:
        raise ConfigError(f"Lora ranks are 0 or more, one above 0, found {lora.ranks}; HeadOnly has none.")
    if not isinstance(lora.targets, tuple) or not lora.targets:
        raise ConfigError(
            f"Lora needs a tuple of at least one target linear, such as ('q_proj',), found {lora.targets!r}."
        )
    if not 0 < lora.scale < math.inf:
        raise ConfigError(f"Lora scale (alpha / rank) must be a number above 0, found {lora.scale}.")


def lora_on_top(
    num_blocks: int,
    depth: int,
    rank: int,
    *,
    targets: tuple[str, ...],
    scale: float = 2.0,
    train_a: bool = True,
) -> Lora:
    """A rank on the top ``depth`` of ``num_blocks`` blocks, the others frozen. Raises ConfigError."""
    _check_depth(num_blocks, depth)
    ranks = (0,) * (num_blocks - depth) + (rank,) * depth
    return Lora(ranks=ranks, targets=targets, scale=scale, train_a=train_a)


def weights_on_top(num_blocks: int, depth: int, part: Part, *, stem: bool = False) -> Weights:
    """The weights of the top ``depth`` of ``num_blocks`` blocks, the others frozen. Raises ConfigError."""
    _check_depth(num_blocks, depth)
    return Weights(part=part, trained=(False,) * (num_blocks - depth) + (True,) * depth, stem=stem)


def _check_depth(num_blocks: int, depth: int) -> None:
    if not 1 <= depth <= num_blocks:
        raise ConfigError(f"depth counts trained blocks from the top, 1 to {num_blocks}, found {depth}.")


def of_whole_blocks(adapter: object) -> bool:
    """Whether this goes with blocks of their full width alone."""
    return isinstance(adapter, Lora | Prompt) or (isinstance(adapter, Weights) and adapter.part == "ia3")


def check_frozen(adapter: object, *, width: object | None, weight_bits: int | None, sparsity: float) -> None:
    """Raises ConfigError for changes of frozen weights that this does not go with."""
    if width is not None and of_whole_blocks(adapter):
        raise ConfigError(
            f"A width ({width}) trains weights or the head; LoRA, IA3 and prompts whole blocks."
        )
    if weight_bits not in (None, 8, 4):
        raise ConfigError(f"weight_bits is one of 8, 4 or absent, found {weight_bits}.")
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity is a share of zeros, 0 to below 1, found {sparsity}.")
    if isinstance(adapter, Weights) and (sparsity or weight_bits is not None):
        does = f"sparsity = {sparsity:g} prunes" if sparsity else f"weight_bits = {weight_bits} rounds"
        raise ConfigError(
            f"{does} weights that are frozen, and this assignment trains them; train LoRA ranks or the "
            "head, or drop it."
        )
    if sparsity and weight_bits is not None:
        raise ConfigError(
            f"sparsity = {sparsity:g} keeps numbers of the dtype's own, and weight_bits = {weight_bits} "
            "rounds them; drop one of the two."
        )
