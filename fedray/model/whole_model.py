"""A model whose own weights were trained, as an ordinary Hugging Face folder."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from fedray.errors import ModelError
from fedray.model.load import load_processor


def save_model(weights: Mapping[str, Tensor], folder: Path, model: PreTrainedModel, name: str) -> None:
    """Write what ``from_pretrained(folder)`` loads: the model with these weights, and its tokenizer.

    Args:
        weights: by the model's names; the others stay as they are.
        folder: replaced if it is there.
        model: is not changed.
        name: what `load_processor` finds the tokenizer, or an image processor, by.

    Raises:
        ModelError: the disk refuses; then nothing is left half-written.
    """
    state = dict(model.state_dict())
    trained = {id(model.get_parameter(n)): t for n, t in weights.items()}
    for key, held in model.state_dict(keep_vars=True).items():
        if id(held) in trained:  # a tied weight has several keys
            state[key] = trained[id(held)].to(held.dtype)
    new = folder.parent / f".{folder.name}-{uuid.uuid4().hex}.new"
    try:
        model.save_pretrained(new, state_dict=state)
        load_processor(name).save_pretrained(new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except OSError as error:
        raise ModelError(
            f"The model could not be written to {str(folder)!r} ({error}); nothing of it was kept. Free some "
            "space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
