"""DeepSpeed's settings for the server's shards: a Hugging Face-style JSON with every ``"auto"`` filled.

Knows what a sweep over a frozen backbone needs of ZeRO, which is not what training needs. DeepSpeed's own
defaults leave every block gathered after the first sweep, so a key of `_NEEDED` that is absent is filled too.
No torch and no deepspeed: settings are checked before a shard starts.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.assignment import Dtype
from fedray.errors import ConfigError
from fedray.shipped import shipped
from fedray.units import show_bytes

Settings = dict[str, Any]
_AUTO = "auto"
_ZERO = "zero_optimization"
_PARAM_BYTES: Mapping[Dtype, int] = {"fp32": 4, "bf16": 2}
_MICRO = "train_micro_batch_size_per_gpu"
# The only "auto" that DeepSpeed itself understands in a file for training.
_DEEPSPEEDS_OWN = "data_types.keep_in_fp32_modules"
_NEEDED = (
    "bf16.enabled",
    _MICRO,
    f"{_ZERO}.stage3_allgather_sequential",
    f"{_ZERO}.stage3_max_reuse_distance",
    f"{_ZERO}.stage3_prefetch_bucket_size",
    f"{_ZERO}.stage3_max_live_parameters",
    f"{_ZERO}.stage3_param_persistence_threshold",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What an ``"auto"`` is filled from.

    Attributes:
        num_params: numbers of the server's frozen backbone.
        block_params: numbers of its largest block.
        largest_param: numbers of its largest single tensor, which may lie outside the blocks.
        dtype: that the backbone is held in.
        micro_batch: rows of one shard in a sweep; DeepSpeed wants a number, and any sweep may have another.
        num_shards: processes of the ZeRO group.
        trained_params: numbers that the engine itself steps; 0 where adapters are tensors the sweep is given.
        has_libaio: whether DeepSpeed's asynchronous disk access is there on the shards' machines.
    """

    num_params: int
    block_params: int
    largest_param: int
    dtype: Dtype
    micro_batch: int
    num_shards: int
    trained_params: int = 0
    has_libaio: bool = False

    @property
    def backbone_bytes(self) -> int:
        """Of all shards together."""
        return self.num_params * _PARAM_BYTES[self.dtype]


def zero_settings(source: str | Path | Mapping[str, Any], facts: ServerFacts) -> Settings:
    """DeepSpeed's settings without an ``"auto"``; what is not known here stays as it is.

    Args:
        source: a JSON file, the name of one in cluster_configs/deepspeed such as ``"zero3"``, or the same
            as a mapping, which is not changed.
        facts: of the backbone and the shards.

    Raises:
        ConfigError: one sentence, on a line of its own, for everything that is wrong.
    """
    where, given = _read(source)
    shape = _shape(given)
    if shape is not None:
        raise ConfigError(where + shape)
    values = _values(given, facts)
    filled = {name: _filled(value, name, values) for name, value in given.items()}
    for key in _NEEDED:
        section, _, name = key.rpartition(".")
        group = filled.setdefault(section, {}) if section else filled
        group.setdefault(name, values[key])
    sentences = [*_unfilled(filled), *(s for check in _CHECKS for s in check(filled, facts))]
    if sentences:
        raise ConfigError("\n".join(where + sentence for sentence in sentences))
    return filled


def what_stays_whole(settings: Mapping[str, Any], facts: ServerFacts) -> list[str]:
    """One sentence for each way in which filled settings do not shard; none if they shard all they can."""
    zero = settings[_ZERO]
    stage = zero.get("stage", 0)
    if stage != 3:
        moments = {0: "nothing", 1: "only the moments", 2: "only the gradients and moments"}[stage]
        trained = f" of {facts.trained_params} trained numbers" if stage else ""
        return [
            f"ZeRO stage {stage} shards {moments}{trained}: each of {facts.num_shards} shards holds all "
            f"{show_bytes(facts.backbone_bytes)} of the frozen backbone; stage 3 would leave "
            f"{show_bytes(facts.backbone_bytes / facts.num_shards)} on each."
        ]
    block, number = facts.block_params, facts.num_params
    loose = {
        "stage3_max_reuse_distance": (
            0,
            "a block stays gathered while its next use is within so many numbers",
        ),
        "stage3_prefetch_bucket_size": (block, f"more is gathered ahead than a block of {block} numbers"),
        "stage3_param_persistence_threshold": (0, "tensors of up to so many numbers are never sharded"),
    }
    return [
        f"{key} is {zero[key]:g} for a backbone of {number} numbers: {what}, on every shard; set it to "
        '"auto", which is 0.'
        for key, (bound, what) in loose.items()
        if zero[key] > bound
    ]


def _values(given: Mapping[str, Any], facts: ServerFacts) -> dict[str, Any]:
    """What each ``"auto"`` is worth, by dotted key.

    Prefetching nothing is what was run for thousands of sweeps with cuts that change between them: what is
    fetched ahead follows the order of the sweep before.
    """
    block = facts.block_params
    micro = given.get(_MICRO, _AUTO)
    micro = facts.micro_batch if micro == _AUTO else micro
    accumulated = given.get("gradient_accumulation_steps", 1)
    accumulated = 1 if accumulated == _AUTO else accumulated
    zero = {
        "stage3_allgather_sequential": True,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": 2 * block,
        "stage3_param_persistence_threshold": 0,
        "stage3_model_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": False,
        "reduce_bucket_size": block,
        "allgather_bucket_size": block,
        "offload_param.buffer_size": -(-facts.largest_param // facts.num_shards),
    }
    return {
        "bf16.enabled": facts.dtype == "bf16",
        "fp16.enabled": False,
        "gradient_clipping": 0.0,
        "gradient_accumulation_steps": accumulated,
        _MICRO: micro,
        "train_batch_size": micro * accumulated * facts.num_shards,
        **{f"{_ZERO}.{name}": value for name, value in zero.items()},
    }


def _filled(value: Any, key: str, values: Mapping[str, Any]) -> Any:
    """A copy all the way down; an ``"auto"`` that nothing is known for stays."""
    match value:
        case Mapping():
            return {name: _filled(inner, f"{key}.{name}", values) for name, inner in value.items()}
        case list() | tuple():
            return [_filled(inner, f"{key}[{place}]", values) for place, inner in enumerate(value)]
        case _:
            return values.get(key, value) if value == _AUTO else value


def _unfilled(value: Any, key: str = "") -> Iterator[str]:
    match value:
        case Mapping():
            for name, inner in value.items():
                yield from _unfilled(inner, f"{key}.{name}".removeprefix("."))
        case list():
            for place, inner in enumerate(value):
                yield from _unfilled(inner, f"{key}[{place}]")
        case "auto" if key != _DEEPSPEEDS_OWN:
            yield f'{key} is "auto", and fedray has nothing to fill it from; write a value or drop it.'


def _shape(given: Mapping[str, Any]) -> str | None:
    """What must hold before anything is filled."""
    zero = given.get(_ZERO, {})
    groups = {name: given.get(name, {}) for name in (_ZERO, "bf16", "fp16")}
    if isinstance(zero, Mapping):
        groups |= {f"{_ZERO}.{name}": zero.get(name, {}) for name in ("offload_param", "offload_optimizer")}
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            return f"{name} is a group of keys, found {group!r}."
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        return f"{_ZERO}.stage is 0, 1, 2 or 3, found {stage!r}."
    for name in (_MICRO, "gradient_accumulation_steps"):
        value = given.get(name, _AUTO)
        if value != _AUTO and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            return f'{name} is a whole number from 1 or "auto", found {value!r}.'
    return None


def _stage(filled: Settings, facts: ServerFacts) -> Iterator[str]:
    stage = filled[_ZERO].get("stage", 0)
    if stage not in (1, 2) or (facts.trained_params and "optimizer" in filled):
        return
    what = "optimizer moments" if stage == 1 else "gradients and optimizer moments"
    why = (
        "needs an optimizer section"
        if facts.trained_params
        else "a frozen backbone has none, nor the optimizer that DeepSpeed then asks for"
    )
    yield (
        f"{_ZERO}.stage {stage} shards {what}, and {why}: take 3, which shards the weights, or 0, which "
        "shards nothing."
    )


def _without_training(filled: Settings, facts: ServerFacts) -> Iterator[str]:
    if facts.trained_params:
        return
    offload = filled[_ZERO].get("offload_optimizer", {})
    idle = {
        "optimizer": "optimizer" in filled,
        "scheduler": "scheduler" in filled,
        f"{_ZERO}.offload_optimizer": offload.get("device", "none") != "none",
        "gradient_clipping": filled.get("gradient_clipping", 0) != 0,
        "gradient_accumulation_steps": filled.get("gradient_accumulation_steps", 1) != 1,
    }
    for key, given in idle.items():
        if given:
            yield (
                f"{key} has no effect: the backbone is frozen and adapters are stepped outside of DeepSpeed, "
                "as the training section says; drop it."
            )


def _batch(filled: Settings, facts: ServerFacts) -> Iterator[str]:
    rows, steps = filled[_MICRO], filled.get("gradient_accumulation_steps", 1)
    product = rows * steps * facts.num_shards
    found = filled.get("train_batch_size", product)
    if found != product:
        yield (
            f"train_batch_size is {found!r}, and {rows} rows x {steps} accumulated x {facts.num_shards} "
            f'shards are {product}; write "auto".'
        )


def _dtype(filled: Settings, facts: ServerFacts) -> Iterator[str]:
    bf16 = filled["bf16"]["enabled"]
    if filled.get("fp16", {}).get("enabled", False):
        yield 'fp16.enabled is true, and a backbone is held in fp32 or bf16; set it to "auto" or drop fp16.'
    if bf16 is not (facts.dtype == "bf16"):
        yield (
            f"bf16.enabled is {json.dumps(bf16)} and the backbone is held in {facts.dtype}; set it to "
            '"auto", or choose the other dtype.'
        )


def _offload(filled: Settings, facts: ServerFacts) -> Iterator[str]:
    key = f"{_ZERO}.offload_param"
    offload = filled[_ZERO].get("offload_param", {})
    device = offload.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        yield f"{key}.device is none, cpu or nvme, found {device!r}."
    elif device != "none" and filled[_ZERO].get("stage", 0) != 3:
        yield (
            f"{key} moves shards of the weights, which stage {filled[_ZERO].get('stage', 0)} does not make; "
            "set stage to 3 or drop it."
        )
    if device == "nvme" and not offload.get("nvme_path"):
        yield f"{key}.device is nvme without an nvme_path; give a folder on a disk of every server node."
    if device == "nvme" and not facts.has_libaio:
        yield (
            f"{key}.device is nvme, which DeepSpeed reads through libaio, and that is not there; install it "
            "with its headers (libaio-dev or libaio-devel), or set device to cpu."
        )


_CHECKS: tuple[Callable[[Settings, ServerFacts], Iterator[str]], ...] = (
    _stage,
    _without_training,
    _batch,
    _dtype,
    _offload,
)


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if isinstance(source, Mapping):
        return "", source
    path = _find(source)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON at line {error.lineno}: {error.msg}.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: DeepSpeed's settings are a group of keys, found {tree!r:.60}.")
    return f"{path}: ", tree


def _find(source: str | Path) -> Path:
    path = Path(source)
    if isinstance(source, Path) or path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise ConfigError(f"There is no DeepSpeed file {path}; give a path that exists, or a name.")
        return path
    folder = shipped("cluster_configs") / "deepspeed"
    named = folder / f"{source}.json"
    if not named.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ConfigError(
            f"There are no DeepSpeed settings named {source!r}; fedray brings {known}, or give a file's path."
        )
    return named


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} is given twice")
    return dict(pairs)
