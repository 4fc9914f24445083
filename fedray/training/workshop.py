"""The workshop that any process can open: the model put together from shared arrays, beside rows and task.

What is large (weights, rows) is plain numpy, so that processes on one machine read one copy; what is
small travels as values.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from fedray.assignment import Dtype
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import empty_backbone
from fedray.training.data import Encoded, Rows
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import Backbone
from fedray.training.task import Task
from fedray.training.train import Workshop
from fedray.width import UnitOrder

Arrays = Mapping[str, NDArray[Any]]

# numpy has no bfloat16: such tensors travel as the 16-bit integers of their bits.
_BF16 = "bf16:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The small half of a workshop.

    Attributes:
        config: of the model.
        targets: names of all linears that any assignment adapts.
        threads: that train one pack; the same everywhere, since another number may round otherwise.
        unit_order: of the model's units by salience, where some client's part is chosen by it.
    """

    config: PreTrainedConfig
    targets: tuple[str, ...]
    task: Task
    optimizer: LocalOptimizer
    max_length: int
    tokens_per_wave: int
    threads: int
    device: str
    unit_order: UnitOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """The large half: frozen weights by dtype, all rows, and which rows each client owns."""

    weights: Mapping[Dtype, Arrays]
    rows: Encoded
    partitions: tuple[Rows, ...]


def open_workshop(blueprint: Blueprint, stock: Stock) -> Workshop:
    """A workshop on the stock's own memory; on the CPU no weight is copied."""
    torch.set_num_threads(blueprint.threads)
    backbones = {}
    for dtype, arrays in stock.weights.items():
        model = empty_backbone(blueprint.config, blueprint.task.head, dtype)
        fill(model, arrays, blueprint.device)
        backbones[dtype] = Backbone.of(_ordered(dissect(model), blueprint.unit_order), [blueprint.targets])
    return Workshop(
        backbones=backbones,
        task=blueprint.task,
        pool=stock.rows,
        partitions=stock.partitions,
        optimizer=blueprint.optimizer,
        max_length=blueprint.max_length,
        tokens_per_wave=blueprint.tokens_per_wave,
        device=blueprint.device,
    )


def _ordered(anatomy: Anatomy, order: UnitOrder | None) -> Anatomy:
    return anatomy if order is None else replace(anatomy, unit_order=lambda: order)


def arrays_of(model: PreTrainedModel) -> dict[str, NDArray[Any]]:
    """All parameters and buffers that a model has on the CPU, without copies; tied ones once."""
    return {
        _BF16 + name if tensor.dtype == torch.bfloat16 else name: _as_array(tensor.detach())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if not tensor.is_meta
    }


def fill(model: PreTrainedModel, arrays: Arrays, device: str) -> None:
    """Give an empty model the tensors that `arrays_of` took from a full one, frozen."""
    for key, array in arrays.items():
        name = key.removeprefix(_BF16)
        tensor = _as_tensor(array)
        if key.startswith(_BF16):
            tensor = tensor.view(torch.bfloat16)
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor.to(device), requires_grad=False)
        else:
            module._buffers[leaf] = tensor.to(device)
    model.tie_weights()


def _as_array(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = plain.numpy()
    return array


def _as_tensor(array: NDArray[Any]) -> Tensor:
    # Arrays out of Ray's object store are read-only, and torch warns that it cannot say so of its tensors.
    # Nothing writes to a frozen weight; a test holds that.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
