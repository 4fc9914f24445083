"""Runs on images: the same engine, from a folder of pictures to an adapter that transformers itself loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTModel

from fedray import engine
from fedray.config import load_config
from fedray.engine import run
from fedray.errors import ConfigError, DataError, FedrayError
from fedray.scene import set_scene
from image_run import image_configuration
from tiny_run import merged, played


@pytest.fixture(scope="session")
def gallery(home: Path) -> dict[str, Any]:
    return image_configuration(home)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_clients_with_and_without_cuts_learn_images_and_leave_what_transformers_loads(
    gallery: dict[str, Any], tmp_path: Path
) -> None:
    result = run(load_config(gallery), tmp_path / "out")
    assert {client.cut for client in result.clients} == {None, 1}
    losses = [record.loss for record in result.rounds]
    assert losses[-1] < 0.5 * losses[0]
    assert result.rounds[-1].accuracy > 0.9  # a guess among four quarters is right in 0.25
    audited = [client for client in result.clients if client.measured_peak_bytes is not None]
    assert len(audited) >= 2
    for client in audited:
        assert client.measured_peak_bytes == pytest.approx(client.predicted_peak_bytes, rel=0.02)
    for client in result.clients:
        crossed = client.boundary_up_bytes, client.boundary_down_bytes
        assert crossed == (client.predicted_boundary_up_bytes, client.predicted_boundary_down_bytes)
    scene = set_scene(load_config(tmp_path / "out" / "config.yaml"), engine.CACHE_DIR)
    test = scene.rows.select(scene.partitions.test)
    loss, accuracy = by_transformers(gallery["model"], tmp_path / "out" / "adapter", test)
    assert (loss, accuracy) == pytest.approx((losses[-1], result.rounds[-1].accuracy), rel=1e-5)


@torch.no_grad()
def by_transformers(model: str, adapter: Path, rows: Any) -> tuple[float, float]:
    """Mean loss and accuracy of PEFT's adapter and our head in a ViTForImageClassification, on these rows."""
    whole = ViTForImageClassification.from_pretrained(model, num_labels=4)
    whole.vit = PeftModel.from_pretrained(ViTModel.from_pretrained(model, add_pooling_layer=False), adapter)
    whole.classifier.load_state_dict(safetensors.torch.load_file(adapter / "head.safetensors"))
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    decoded = rows.cast_column("image", rows.features["image"].__class__(decode=True))
    pixels = processor(list(decoded["image"]), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(list(decoded["label"]))
    # The wrapped backbone is called as transformers calls its own, and answers with the class token first.
    logits = whole.classifier(whole.vit(pixel_values=pixels).last_hidden_state[:, 0])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(-1) == labels).double().mean())


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        (
            {"data": {"max_length": 64}},
            ConfigError,
            r"max_length = 64 has no effect on images, .* 5 tokens each",
        ),
        (
            {"task": {"name": "text_classification", "options": {"text_column": "image"}}},
            DataError,
            "This model reads images, and the task gave it a text",
        ),
        ({"task": "causal_lm"}, FedrayError, "'vit' model was asked for a causal_lm head"),
        (
            {"task": {"name": "image_classification", "options": {"image_column": "picture"}}},
            DataError,
            "reads the column 'picture', and the rows have image, label",
        ),
    ],
)
def test_what_does_not_go_with_images_is_refused(
    gallery: dict[str, Any], changes: dict[str, Any], kind: type[FedrayError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        set_scene(load_config(merged(gallery, changes)), None)


def test_a_small_vit_with_random_weights_learns_digits_through_lora_and_a_head(
    home: Path, gallery: dict[str, Any], shared: Path
) -> None:
    source = shared / "data" / "images" / "mnist_t10k.parquet"
    if not source.is_file():
        pytest.skip("needs mnist_t10k.parquet of the trial data beside the checkout")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=28,
        patch_size=7, num_channels=1, initializer_range=0.1,
    )  # fmt: skip
    ViTModel(config).save_pretrained(home / "digits")
    digits = merged(
        gallery,
        {
            "model": str(home / "digits"),
            "task": {"name": "image_classification", "options": {"image_shape": [28, 28]}},
            "data": {"source": str(source), "max_rows": 1200, "partitioner": {"name": "iid"}},
            "fleet": "edge",
            "menu": {"ranks": [8], "cuts": [1], "per_device_train_batch_size": [16]},
            "training": {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "num_train_epochs": 2},
            "packs": {"clients_per_pack": 6},
            "audit": {"distinct": False, "share": 0.0},
        },
    )
    progress = played(digits)
    accuracies = [record.accuracy for record in progress.rounds]
    losses = [record.loss for record in progress.rounds]
    assert losses[0] > losses[1] > losses[2]
    assert accuracies[-1] > max(0.35, accuracies[0])
    assert np.isfinite(losses).all()


def test_the_example_gives_each_font_of_the_embedded_letters_to_a_client(
    gallery: dict[str, Any], repository: Path
) -> None:
    config = load_config(repository / "examples" / "vit_images.yaml", [f"model={gallery['model']}"])
    scene = set_scene(config, None)
    assert scene.num_labels == 62
    assert (len(scene.partitions.names), len(scene.partitions.unseen_names)) == (17, 3)
    assert {"cmr10", "DejaVuSans"} <= {*scene.partitions.names, *scene.partitions.unseen_names}
    assert scene.tokens.tolist() == [5] * 17
    assert scene.encoded.arrays["pixel_values"].dtype == np.uint8
