"""What a client trains beside LoRA and the head: weights of the model's own, a few beside them, a prompt."""

from dataclasses import dataclass
from typing import Literal

from fedray.errors import ConfigError

Part = Literal["all", "bias", "ia3"]
PARTS: dict[Part, str] = {"all": "all weights", "bias": "biases", "ia3": "IA3 vectors"}


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
    """Prompt tuning (2104.08691): trained embeddings before the words, and a gradient through every block.

    Attributes:
        num_tokens: of the prompt; fewer than another client's are the first of that one's.
    """

    num_tokens: int


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
