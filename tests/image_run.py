"""Whole runs on images in seconds: a tiny random ViT, and a folder of pictures by which quarter is bright."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from tiny_run import save_fleet

MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.3, 0.2]


def save_vit(folder: Path) -> str:
    """A random checkpoint of four blocks for images of 8 x 8, four patches each, with its image processor."""
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        initializer_range=0.2,
    )
    ViTModel(config).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return str(folder)


def save_gallery(folder: Path, num_images: int = 240) -> str:
    """Noisy pictures of 10 x 10 in four folders, each named after the quarter that is bright in its own."""
    random = np.random.default_rng(5)
    for at in range(num_images):
        down, right = divmod(at % 4, 2)
        pixels = random.integers(0, 40, (10, 10, 3), np.uint8)
        pixels[5 * down : 5 * down + 5, 5 * right : 5 * right + 5] += 200
        place = folder / f"{('upper', 'lower')[down]}-{('left', 'right')[right]}"
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(place / f"{at}.png")
    return str(folder)


def image_configuration(folder: Path) -> dict[str, Any]:
    """Three rounds on the tiny ViT, six clients, cuts beside whole models."""
    return {
        "model": save_vit(folder / "vit"),
        "task": "image_classification",
        "data": {
            "source": save_gallery(folder / "gallery"),
            "partitioner": {"name": "dirichlet", "alpha": 3.0, "min_partition_size": 4},
            "num_clients": 6,
        },
        "fleet": save_fleet(folder / "images.csv", [60, 400, 60, 400, 60, 400]),
        "menu": {
            "ranks": [4],
            "depths": ["all"],
            "cuts": [1],
            "per_device_train_batch_size": [4],
        },
        "training": {"learning_rate": 1e-2, "head_learning_rate": 3e-2, "num_train_epochs": 2},
        "rounds": {"num_rounds": 3, "clients_per_round": 6},
        "packs": {"clients_per_pack": 2},
        "runtime": "local",
    }
