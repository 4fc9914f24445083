"""One shard of the server: a process of a DeepSpeed ZeRO-3 group. The only module that imports deepspeed.

ZeRO-3 (1910.02054) keeps a part of every weight on every shard and gathers a block's weights while it runs.
Weights go from the checkpoint into the parts, one tensor at a time, so no process ever holds the whole
backbone. The engine has no optimizer: adapters are tensors that a sweep is given.
"""

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from fedray.adapter import Adapter
from fedray.model.anatomy import dissect
from fedray.model.checkpoint_files import CheckpointFiles
from fedray.model.counter import ByteCounter
from fedray.model.load import TORCH_DTYPES, empty_backbone
from fedray.server.aboard import Lowest
from fedray.server.lockstep import SplitRound
from fedray.server.passing import Part, passed
from fedray.server.server_half import ServerHalf
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.server.sweep import Ride, Sweep
from fedray.training.boundary import Messages, PackMessages
from fedray.training.packed import Backbone
from fedray.training.parted import Span


class _SweepModule(nn.Module):
    """The root that DeepSpeed hooks: its one output starts the backward; exits leave by the rides."""

    def __init__(self, model: nn.Module, sweep: Sweep) -> None:
        super().__init__()
        self.model = model
        self._sweep = sweep

    def forward(self, rides: Sequence[Ride], lowest: int) -> Tensor:
        return self._sweep(rides, lowest)


@dataclass(frozen=True, slots=True)
class _Part:
    """Where in a weight a saved tensor lies; the weight may be released and gathered again in between."""

    weight: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _kept(saved: Tensor) -> Tensor | _Part:
    """What the graph keeps of a tensor for the backward pass.

    A linear saves a view of its weight, and with it the whole gathered weight, on every shard.
    """
    weight = saved if saved._base is None else saved._base
    if not isinstance(weight, nn.Parameter):
        return saved.detach()
    return _Part(weight, saved.size(), saved.stride(), int(saved.storage_offset()))


def _found(kept: Tensor | _Part) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return kept.weight.detach().as_strided(kept.size, kept.stride, kept.offset)


class ZeroShard:
    """One process of the group; all of them must be asked the same, in the same order."""

    def __init__(self, blueprint: ShardBlueprint, shard: int, num_shards: int, meeting_point: str) -> None:
        """Join the group and load this shard's part of every weight.

        Args:
            blueprint: the same for all shards.
            shard: 0 to ``num_shards`` - 1.
            num_shards: of the group.
            meeting_point: HOST:PORT that shard 0 listens at.
        """
        torch.set_num_threads(blueprint.threads)
        _join(blueprint, shard, num_shards, meeting_point)
        model = empty_backbone(blueprint.config, blueprint.task.head, blueprint.dtype)
        _load(model, blueprint)
        self._backbone = Backbone.of(dissect(model), [blueprint.targets] if blueprint.targets else [])
        sweep = Sweep(
            self._backbone, blueprint.task, blueprint.attention, recompute=blueprint.recompute, ghost=True
        )
        self._gathered = ByteCounter()
        self._looks: list[RemovableHandle] = []
        self._engine: Any = None
        self._root = _SweepModule(model, sweep)
        if _is_divided(blueprint):
            self._initialize(blueprint)
        self._device = blueprint.device
        self._half = ServerHalf(
            self._backbone, self._walk, blueprint.optimizer, self._device, all_backward=True
        )

    def _initialize(self, blueprint: ShardBlueprint) -> None:
        for block in self._backbone.anatomy.blocks:
            # Gathered and released as one. Hooks inside a block would be nodes of the graph, and gradients of
            # an input that several of its modules read would add up in another order than in one process.
            set_z3_leaf_module(block, True)
        # Its hooks are what is wanted of the engine: nothing in it is trained, and its own forward would wait
        # for an optimizer.
        self._engine, *_ = deepspeed.initialize(
            model=self._root, config=_settings(blueprint), dist_init_required=False
        )

    def _walk(self, rides: Sequence[Ride], lowest: int) -> Tensor:
        with saved_tensors_hooks(_kept, _found):
            total: Tensor = self._root(rides, lowest)
        return total

    def open(self, split: SplitRound, learning_rate_scale: float) -> None:
        """See `ServerHalf.open`."""
        self._half.open(split, learning_rate_scale)

    def forward(self, messages: PackMessages, lowest: Lowest) -> dict[int, Messages]:
        """See `ServerHalf.forward`; without messages a ghost row goes alone."""
        return self._half.forward(messages, lowest)

    def backward(self, gradients: PackMessages) -> tuple[dict[int, Messages], list[Tensor]]:
        """See `ServerHalf.backward`."""
        return self._half.backward(gradients)

    def settle(self, squares: Mapping[int, float]) -> None:
        """See `ServerHalf.settle`."""
        self._half.settle(squares)

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """See `ServerHalf.settle_shared`."""
        self._half.settle_shared(gradients)

    def finish(self) -> dict[int, tuple[list[Adapter | None], list[float]]]:
        """See `ServerHalf.finish`."""
        return self._half.finish()

    def passed(self, span: Span, part: Part) -> Tensor | None:
        """See `fedray.server.passing.passed`."""
        return passed(self._walk, span, part, self._device)

    def weight_bytes(self) -> tuple[int, int, int]:
        """Bytes of all weights, of this shard's part of them, and of those gathered on it right now."""
        whole = part = gathered = 0
        for parameter in self._backbone.anatomy.model.parameters():
            held: Any = parameter
            if self._engine is None:
                whole, part = whole + held.nbytes, part + held.nbytes
                continue
            size = held.ds_numel * held.element_size()
            whole += size
            part += held.ds_tensor.numel() * held.ds_tensor.element_size()
            gathered += size if held.ds_status == ZeroParamStatus.AVAILABLE else 0
        return whole, part, gathered

    def watch(self) -> None:
        """From now on follow every gathered weight until torch lets go of its bytes; costs time and bits."""
        for module in self._backbone.anatomy.model.modules() if self._engine is not None else ():
            self._looks.append(module.register_forward_hook(self._look))
            self._looks.append(module.register_full_backward_hook(self._look))
        self._gathered = ByteCounter()

    def _look(self, *_: Any) -> None:
        held: list[Any] = list(self._backbone.anatomy.model.parameters())
        there = [p for p in held if p.ds_status == ZeroParamStatus.AVAILABLE]
        # A single shard's part is the weight itself.
        own = {p.ds_tensor.untyped_storage().data_ptr() for p in there}
        self._gathered.hold([p for p in there if p.untyped_storage().data_ptr() not in own], "weights")

    def watched(self) -> tuple[int, int, int]:
        """Bytes of all weights, of this shard's part, and most gathered at once since `watch`, which ends."""
        for look in self._looks:
            look.remove()
        self._looks = []
        whole, part, _ = self.weight_bytes()
        return whole, part, self._gathered.peak

    def close(self) -> None:
        """Leave the group."""
        if self._engine is not None:
            self._engine.destroy()
        dist.destroy_process_group()
        gc.collect()


def _join(blueprint: ShardBlueprint, shard: int, num_shards: int, meeting_point: str) -> None:
    if dist.is_initialized():  # one process may hold parts of several models
        return
    host, _, port = meeting_point.rpartition(":")
    os.environ |= {
        "RANK": str(shard),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(num_shards),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    backend = "nccl" if blueprint.device.startswith("cuda") else "gloo"
    if backend == "gloo":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Its all-reduce in shared memory would be compiled first, half a minute; a sweep never calls it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=blueprint.time_limit_seconds),
        rank=shard,
        world_size=num_shards,
        verbose=False,
    )


def _is_divided(blueprint: ShardBlueprint) -> bool:
    """Whether weights are: by stage 3 alone. Else each shard holds all of them, and sweeps as they are."""
    return bool(blueprint.settings["zero_optimization"].get("stage", 0) == 3)


def _settings(blueprint: ShardBlueprint) -> dict[str, Any]:
    """DeepSpeed's, but with torch's own linear, so that a shard's forward has the bits of one process."""
    zero = {**blueprint.settings["zero_optimization"], "memory_efficient_linear": False}
    return {**blueprint.settings, "zero_optimization": zero}


def _load(model: PreTrainedModel, blueprint: ShardBlueprint) -> None:
    """Each weight from its file into the shards' parts, one tensor in memory at a time."""
    files, dtype = CheckpointFiles(blueprint.checkpoint, model), TORCH_DTYPES[blueprint.dtype]
    pieces = dissect(model).pieces()
    tied = {name for name in model.state_dict(keep_vars=True) if name not in dict(model.named_parameters())}
    needless = set(pieces["stem"]) - _tied_to(model, tied)
    divide = _divided_by(blueprint, dtype) if _is_divided(blueprint) else _copied
    loaded: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for leaf, parameter in list(module._parameters.items()):
            name = f"{path}.{leaf}" if path else leaf
            if parameter is None or id(parameter) in loaded:
                module._parameters[leaf] = None if parameter is None else loaded[id(parameter)]
            elif name in needless:
                # The clients run the stem; a shard without it spends nothing on it.
                module._parameters[leaf] = None
            else:
                # The first shard reads, and tells the others.
                first = dist.get_rank() == 0
                read = files.tensor(name) if first else torch.empty(parameter.shape)
                full = read.to(blueprint.device, dtype)
                loaded[id(parameter)] = module._parameters[leaf] = divide(full)
        for leaf in module._buffers:
            name = f"{path}.{leaf}" if path else leaf
            module._buffers[leaf] = blueprint.buffers[name].to(blueprint.device)


def _divided_by(blueprint: ShardBlueprint, dtype: torch.dtype) -> Callable[[Tensor], nn.Parameter]:
    """Takes the first shard's tensor to a frozen parameter of which only each shard's own part stays."""
    partition = deepspeed.zero.Init(config_dict_or_path=_settings(blueprint), dtype=dtype)

    def divide(full: Tensor) -> nn.Parameter:
        parameter = nn.Parameter(full, requires_grad=False)
        partition._zero_init_param(parameter)
        return parameter

    return divide


def _copied(full: Tensor) -> nn.Parameter:
    """The first shard's tensor on every shard."""
    dist.broadcast(full, 0)
    return nn.Parameter(full, requires_grad=False)


def _tied_to(model: PreTrainedModel, names: set[str]) -> set[str]:
    """First names of the parameters that have these names too."""
    everything = model.state_dict(keep_vars=True)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {first[id(everything[name])] for name in names if id(everything[name]) in first}
