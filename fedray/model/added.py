"""What is put beside a model's own weights and trained: prompts and prefixes before the words, and vectors.

They go by the names PEFT gives them, among what is trained of the model itself; a prefix by one a block.

Letters of shapes: P tokens of a prompt, D hidden width, I and O a linear's widths.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy, backbone_prefix
from fedray.model.prefix import PREFIX
from fedray.model.slices import sizes_of
from fedray.model.weight_sites import IA3

PROMPT = "prompt_embeddings"
_IA3 = f".{IA3}"


def is_added(name: str) -> bool:
    """Whether this names something beside the model's own weights."""
    return name == PROMPT or name.startswith(PREFIX) or name.endswith(_IA3)


def prompt_shape(anatomy: Anatomy, num_tokens: int) -> tuple[int, int]:
    """P and D. Raises ModelError for a family that words do not go into."""
    return num_tokens, int(_words(anatomy).shape[1])


def prefix_shapes(anatomy: Anatomy, blocks: Iterable[int], num_tokens: int) -> dict[str, tuple[int, int]]:
    """P and 2 G H of each of these blocks' prefix by name, for G heads of keys and values, H wide.

    Raises ModelError for a family that words do not go into.
    """
    _words(anatomy)
    sizes = sizes_of(anatomy)
    return {f"{PREFIX}{block}": (num_tokens, 2 * sizes.kv_heads * sizes.head_dim) for block in blocks}


def ia3_shapes(anatomy: Anatomy, block: int) -> dict[str, tuple[int, int]]:
    """A block's vectors by name (IA3, 2205.05638): [O, 1] of keys and values, [1, I] inside the feed-forward.

    Raises ModelError for a family whose linears of these roles are not declared.
    """
    family, linears = anatomy.family, anatomy.linears(block)
    if not family.ia3_outputs:
        raise ModelError(
            f"Which linears IA3 rescales is not known for {anatomy.model.config.model_type} models; name "
            "them in the family's ia3_outputs and ia3_inputs, or choose another of menu.tunings."
        )
    root, path = backbone_prefix(anatomy.model), anatomy.block_path(block)
    outputs = {f"{root}{path}{end}{_IA3}": (_widths(linears[path + end])[0], 1) for end in family.ia3_outputs}
    inputs = {f"{root}{path}{end}{_IA3}": (1, _widths(linears[path + end])[1]) for end in family.ia3_inputs}
    return outputs | inputs


def words_at(anatomy: Anatomy, ids: Tensor) -> Tensor:
    """Rows of the word embeddings, [P, D], as fp32 copies: what a prompt starts from."""
    return _words(anatomy).detach()[ids].float()


def vocabulary_size(anatomy: Anatomy) -> int:
    """Rows of the word embeddings."""
    return int(_words(anatomy).shape[0])


def _words(anatomy: Anatomy) -> Tensor:
    if anatomy.family.words is None:
        raise ModelError(
            f"A prompt stands before words, and none go into a {anatomy.model.config.model_type} model; "
            "choose another of menu.tunings."
        )
    return anatomy.backbone.get_parameter(f"{anatomy.family.words}.weight")


def _widths(linear: nn.Module) -> tuple[int, int]:
    rows, columns = linear.get_parameter("weight").shape
    return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)
