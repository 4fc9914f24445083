"""A checkpoint folder's tensors one by one: safetensors files, whole or in pieces with an index.

For who must never hold a whole model: each tensor is read when it is asked for and mapped, not copied,
until then.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from fedray.errors import ModelError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class CheckpointFiles:
    """Finds tensors by the names that a model gives them, whatever older versions called them."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        """Read the index; an empty model will do. Raises ModelError for a folder without safetensors."""
        self._folder = folder
        self._open: dict[str, Any] = {}
        if (folder / _WHOLE).is_file():
            files = dict.fromkeys(self._file(_WHOLE).keys(), _WHOLE)
        elif (folder / _INDEX).is_file():
            files = json.loads((folder / _INDEX).read_text())["weight_map"]
        else:
            raise ModelError(
                f"The server's shards load safetensors, and {folder} holds neither {_WHOLE} nor "
                f"{_INDEX}; save the model with save_pretrained, or set server.engine: in_process."
            )

        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        named = _in_model(model)
        self._places = {named(stored): (file, stored) for stored, file in files.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the model, such as ``"layers.0.mlp.fc1.weight"``, copied out of its file.

        Raises:
            ModelError: if the checkpoint does not hold it, or in another shape than the model's.
        """
        if name not in self._places:
            raise ModelError(
                f"The checkpoint {self._folder} does not hold {name!r}; give one that save_pretrained wrote "
                "for this model, with or without a head."
            )
        file, stored = self._places[name]
        tensor: Tensor = self._file(file).get_tensor(stored)
        if tensor.shape != self._shapes[name]:
            raise ModelError(
                f"The checkpoint {self._folder} holds {name!r} as {list(tensor.shape)}, and its config.json "
                f"describes {list(self._shapes[name])}; give a checkpoint and a config.json of one model."
            )
        return tensor if tensor.dtype.is_floating_point else tensor.to(torch.float32)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]


def _in_model(model: PreTrainedModel) -> Callable[[str], str]:
    """What a model calls a stored tensor: transformers' own renaming of older checkpoints, and its prefix."""
    renamings = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
    prefix, state = model.base_model_prefix, model.state_dict()
    return lambda stored: rename_source_key(stored, renamings, [], prefix, state)[0]
