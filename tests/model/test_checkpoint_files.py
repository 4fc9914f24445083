"""Tensors one by one out of a folder, under the names that transformers gives them as it loads the whole."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from fedray.errors import ModelError
from fedray.model.checkpoint_files import CheckpointFiles
from fedray.model.load import TaskHead, empty_backbone, load_config

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SAVED: list[tuple[PreTrainedModel, TaskHead]] = [
    (AutoModel.from_config(ViTConfig(**SMALL, image_size=8, patch_size=4)), "classification"),
    (ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4)), "classification"),
    (BertForMaskedLM(BertConfig(**SMALL, vocab_size=12)), "classification"),
    (AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=12)), "causal_lm"),
    (AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=12)), "classification"),
]


@pytest.mark.parametrize(("saved", "head"), SAVED, ids=[f"{type(m).__name__} {h}" for m, h in SAVED])
@pytest.mark.parametrize("shard_bytes", ["1GB", "4KB"], ids=["one file", "an index"])
def test_each_tensor_is_the_one_that_transformers_loads(
    saved: PreTrainedModel, head: TaskHead, shard_bytes: str, tmp_path: Path
) -> None:
    saved.save_pretrained(tmp_path, max_shard_size=shard_bytes)
    assert (tmp_path / "model.safetensors").is_file() == (shard_bytes == "1GB")
    empty = empty_backbone(load_config(str(tmp_path)), head)
    loaded = (AutoModel if head == "classification" else AutoModelForCausalLM).from_pretrained(tmp_path)
    files = CheckpointFiles(tmp_path, empty)
    for name, _ in empty.named_parameters():
        assert torch.equal(files.tensor(name), loaded.get_parameter(name)), name


def test_a_vit_of_any_age_is_found(tmp_path: Path) -> None:
    config = ViTConfig(**SMALL, image_size=8, patch_size=4)
    model = AutoModel.from_config(config, add_pooling_layer=False)
    for new, query in (
        (False, "encoder.layer.1.attention.attention.query"),
        (True, "layers.1.attention.q_proj"),
    ):
        folder = tmp_path / str(new)
        model.save_pretrained(folder, save_original_format=not new)
        assert f"{query}.bias" in safetensors.torch.load_file(folder / "model.safetensors")
        files = CheckpointFiles(folder, empty_backbone(config, "classification"))
        for name, parameter in model.named_parameters():
            assert torch.equal(files.tensor(name), parameter)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    config = ViTConfig(**SMALL)
    empty = empty_backbone(config, "classification")
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor .*index\.json"):
        CheckpointFiles(tmp_path, empty)
    safetensors.torch.save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"does not hold 'layers\.0\.mlp\.fc1\.weight'; give one"):
        CheckpointFiles(tmp_path, empty).tensor("layers.0.mlp.fc1.weight")
    misshapen = {"layers.0.mlp.fc1.weight": torch.zeros(3, 16)}
    safetensors.torch.save_file(misshapen, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"fc1\.weight' as \[3, 16\], .* describes \[24, 16\]; give a"):
        CheckpointFiles(tmp_path, empty).tensor("layers.0.mlp.fc1.weight")
