"""A prompt, a prefix or IA3's vectors as folders that `PeftModel.from_pretrained` loads; names are PEFT's."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from peft import IA3Config, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedray.model.added import PROMPT
from fedray.model.export import CONFIG, ROOT, WEIGHTS, as_json, plain, replacing, task_type
from fedray.model.prefix import PREFIX
from fedray.model.weight_sites import IA3


def save_added(weights: Mapping[str, Tensor], out: Path, *, model: PreTrainedModel, base_name: str) -> None:
    """Write ``out/prompt``, ``out/prefix`` and ``out/ia3`` where there is such a thing.

    What is the model's own is left out, and so is a prefix that not every block has: PEFT has none.

    Raises:
        ModelError: a folder holds other files, or the disk refuses.
    """
    vectors = {name: tensor for name, tensor in weights.items() if name.endswith(f".{IA3}")}
    prefixes = [weights.get(f"{PREFIX}{block}") for block in range(model.config.num_hidden_layers)]
    whole = [own for own in prefixes if own is not None]
    if len(whole) == len(prefixes):
        heads = model.config.to_dict().get("num_key_value_heads") or model.config.num_attention_heads
        prefix_config = PrefixTuningConfig(
            num_virtual_tokens=len(whole[0]),
            token_dim=whole[0].shape[1] // 2,
            num_layers=len(whole),
            num_attention_heads=heads,
            num_transformer_submodules=1,
            base_model_name_or_path=base_name,
            task_type=task_type(model),
            inference_mode=True,
        )
        _save(out / "prefix", prefix_config, {PROMPT: torch.cat(whole, dim=1)})
    if PROMPT in weights:
        prompt = weights[PROMPT]
        config = PromptTuningConfig(
            num_virtual_tokens=len(prompt),
            token_dim=prompt.shape[1],
            num_layers=model.config.num_hidden_layers,
            num_attention_heads=model.config.num_attention_heads,
            num_transformer_submodules=1,
            base_model_name_or_path=base_name,
            task_type=task_type(model),
            inference_mode=True,
        )
        _save(out / "prompt", config, {PROMPT: prompt})
    if vectors:
        paths = {name.removesuffix(f".{IA3}"): tensor for name, tensor in vectors.items()}
        rescaling = IA3Config(
            target_modules=list(paths),
            feedforward_modules=[path for path, tensor in paths.items() if tensor.shape[0] == 1],
            fan_in_fan_out=any(isinstance(model.get_submodule(path), Conv1D) for path in paths),
            base_model_name_or_path=base_name,
            task_type=task_type(model),
            inference_mode=True,
        )
        _save(out / "ia3", rescaling, {f"{ROOT}{name}": tensor for name, tensor in vectors.items()})


def _save(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    with replacing(folder) as new:
        (new / CONFIG).write_text(as_json(config))
        held = {name: plain(tensor) for name, tensor in tensors.items()}
        (new / WEIGHTS).write_bytes(safetensors.torch.save(held, {"format": "pt"}))
