"""The trained adapter as a folder that `PeftModel.from_pretrained` loads, and back.

Beside PEFT's two files lies ``head.safetensors``, the task head that PEFT does not know. PEFT names
modules by their path in the model; an `Adapter` names sites by their path in the backbone.

Letters of shapes: R rank, I a linear's input width, O its output width.
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from peft import LoraConfig, PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedray.adapter import Adapter, Factors
from fedray.errors import ModelError
from fedray.model.anatomy import backbone_prefix

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"

_FILES = frozenset((CONFIG, WEIGHTS, HEAD))
ROOT = "base_model.model."  # where PEFT keeps the model it wraps
_SIDES = ("lora_A", "lora_B")
# What sites lack to be PEFT's paths. In the head's metadata: of two keys in one file safetensors
# writes either first.
_PREFIX_KEY = "fedray_backbone_prefix"


def folded(adapter: Adapter, base_delta: Mapping[str, Factors]) -> Adapter:
    """The adapter with a base's low-rank changes in it: ranks add up, products are summed exactly.

    ``s B A + s' B' A' = s [B | B' s'/s] [A ; A']``, no product [O, I] is formed. Rank-0 sites fall away.
    """
    sites: dict[str, Factors] = {}
    for site in {**adapter.factors, **base_delta}:
        parts = [part[site] for part in (adapter.factors, base_delta) if site in part and part[site].rank]
        if parts:
            scale = parts[0].scale
            sites[site] = Factors(
                a=torch.cat([part.a for part in parts]),
                b=torch.cat([part.b * (part.scale / scale) for part in parts], dim=1),
                scale=scale,
            )
    return Adapter(factors=sites, head=adapter.head)


def save_adapter(
    adapter: Adapter,
    folder: Path | str,
    *,
    model: PreTrainedModel,
    base_name: str,
    base_delta: Mapping[str, Factors] | None = None,
) -> None:
    """Write what ``PeftModel.from_pretrained(type(model), folder)`` loads, giving the same logits.

    Args:
        adapter: the trained factors and head; sites of rank 0 are left out.
        folder: replaced if it holds an earlier adapter.
        model: tells how its class names the sites, and which linears are transposed.
        base_name: what the user called the base model, for the model card of whoever loads it.
        base_delta: changes of the frozen linears; folded in.

    Raises:
        ModelError: a site is not in the model or has another shape, the folder holds other files, or the
            disk refuses; then nothing is left half-written, and an earlier adapter stays.
    """
    whole = folded(adapter, base_delta or {})
    prefix = backbone_prefix(model)
    modules = [_checked_site(model, prefix + site, factors) for site, factors in whole.factors.items()]
    config = _peft_config(model, {prefix + site: f for site, f in whole.factors.items()}, base_name)
    # PEFT asks for one flag of the whole adapter: GPT-2's Conv1D keeps its weight as [I, O].
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in modules)
    tensors = {
        f"{ROOT}{prefix}{site}.{side}.weight": plain(tensor)
        for site, factors in whole.factors.items()
        for side, tensor in zip(_SIDES, (factors.a, factors.b), strict=True)
    }
    with replacing(Path(folder)) as new:
        (new / CONFIG).write_text(as_json(config))
        (new / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        head = {name: plain(tensor) for name, tensor in whole.head.items()}
        (new / HEAD).write_bytes(safetensors.torch.save(head, {_PREFIX_KEY: prefix}))


def load_adapter(folder: Path | str) -> Adapter:
    """What `save_adapter` wrote, with sites by their path in the backbone.

    Raises:
        ModelError: a file is absent or torn, or a tensor is missing, unexpected or of another rank than
            the configuration says.
    """
    place = Path(folder)
    try:
        config = json.loads((place / CONFIG).read_text())
        tensors, _ = _read_tensors(place / WEIGHTS)
        head, metadata = _read_tensors(place / HEAD)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{str(folder)!r} holds no adapter written by fedray ({error}).") from error
    if _PREFIX_KEY not in metadata:
        raise ModelError(
            f"The adapter in {str(folder)!r} was not written by fedray; load it with PEFT instead."
        )
    ranks = _ranks(config)
    expected = {f"{ROOT}{path}.{side}.weight" for path in ranks for side in _SIDES}
    _refuse_other_keys(str(folder), expected, tensors.keys())
    factors = {}
    for path, (rank, scale) in ranks.items():
        a, b = (tensors[f"{ROOT}{path}.{side}.weight"] for side in _SIDES)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise ModelError(
                f"{path} in {str(folder)!r} should have rank {rank}; its factors are {list(a.shape)} and "
                f"{list(b.shape)}."
            )
        factors[path.removeprefix(metadata[_PREFIX_KEY])] = Factors(a=a, b=b, scale=scale)
    return Adapter(factors=factors, head=head)


def _checked_site(model: PreTrainedModel, path: str, factors: Factors) -> torch.nn.Module:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"The adapter has factors for {path!r}, which the model does not have.") from error
    weight = module.get_parameter("weight")
    shape = tuple(weight.shape[::-1] if isinstance(module, Conv1D) else weight.shape)
    if shape != (factors.b.shape[0], factors.a.shape[1]):
        raise ModelError(
            f"{path!r} is {shape[0]} x {shape[1]} in the model; the adapter's product is "
            f"{factors.b.shape[0]} x {factors.a.shape[1]}."
        )
    return module


def _peft_config(model: PreTrainedModel, paths: Mapping[str, Factors], base_name: str) -> LoraConfig:
    return LoraConfig(
        # Every site is named with its own rank and alpha, so that r and lora_alpha are never read.
        r=max((factors.rank for factors in paths.values()), default=1),
        lora_alpha=1,
        # PEFT refuses an adapter without a site; its own name for "none" is what a head alone gets.
        target_modules=list(paths) or DUMMY_TARGET_MODULES,
        rank_pattern={path: factors.rank for path, factors in paths.items()},
        alpha_pattern={path: factors.scale * factors.rank for path, factors in paths.items()},
        base_model_name_or_path=base_name,
        task_type=task_type(model),
        inference_mode=True,
    )


def task_type(model: PreTrainedModel) -> str:
    """What PEFT calls what the model is for."""
    return "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"


def as_json(config: PeftConfig) -> str:
    """A configuration as PEFT writes it, in the same order in every process."""
    # PEFT keeps the targets as a set, whose order changes from process to process.
    fields: dict[str, Any] = config.to_dict()
    return json.dumps(fields, default=sorted, indent=2, sort_keys=True) + "\n"


def plain(tensor: Tensor) -> Tensor:
    """On the CPU, with memory of its own."""
    return tensor.detach().cpu().contiguous().clone()


@contextmanager
def replacing(folder: Path, what: str = "adapter") -> Iterator[Path]:
    """A fresh folder to write in, which takes the place of `folder` if all went well and vanishes if not."""
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _FILES):
        raise ModelError(
            f"{str(folder)!r} holds things that are no {what}; choose another folder to write one."
        )
    mark = uuid.uuid4().hex
    new, old = (folder.parent / f".{folder.name}-{mark}.{kind}" for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise ModelError(
            f"The {what} could not be written to {str(folder)!r} ({error}); nothing of it was kept. "
            "Free some space or choose another folder."
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safetensors.safe_open(file, framework="pt") as opened:
        names: list[str] = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def _ranks(config: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    return {path: (rank, alphas[path] / rank) for path, rank in ranks.items()}


def _refuse_other_keys(folder: str, expected: Set[str], found: Set[str]) -> None:
    for what, keys in (("misses", expected - found), ("should not hold", found - expected)):
        if keys:
            raise ModelError(
                f"The adapter in {folder!r} {what} {len(keys)} tensors, {min(keys)!r} for one; "
                f"{CONFIG} and {WEIGHTS} are not of one run."
            )
