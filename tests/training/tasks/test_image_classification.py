import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessorPil

from fedray.errors import DataError
from fedray.model.images import ImageProcessor
from fedray.training.data import encode
from fedray.training.sources import Source, load_rows
from fedray.training.tasks.image_classification import ImageClassification

SMALL = ImageProcessor(ViTImageProcessorPil(size={"height": 4, "width": 4}), ViTConfig(image_size=4))
DIGITS = ImageProcessor(
    ViTImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5]),
    ViTConfig(image_size=28, num_channels=1),
)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two plain images each, in files of two formats."""
    for name, grey in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for at, suffix in enumerate(("png", "bmp")):
            PIL.Image.new("L", (6 + at, 5), grey + at).save(tmp_path / name / f"{at}.{suffix}")
    return tmp_path


def test_a_folder_of_images_by_label_is_a_data_set(folder):
    rows = load_rows(Source(name=folder))
    task = ImageClassification()
    assert task.labels(list(rows)) == 2
    encoded = encode(task, rows, SMALL, 5)
    assert list(encoded.numbers["label"]) == [0, 0, 1, 1]
    assert encoded.arrays["pixel_values"].shape == (4, 3, 4, 4)
    assert encoded.arrays["pixel_values"][:, 0, 0, 0].tolist() == [10, 11, 240, 241]


def test_listing_the_rows_of_a_folder_opens_no_image(folder):
    for file in folder.rglob("*.bmp"):
        file.write_bytes(b"no image")
    rows = load_rows(Source(name=folder))
    assert ImageClassification().labels(list(rows)) == 2
    with pytest.raises(DataError, match=r"Pillow reads no image from .*1\.bmp"):
        encode(ImageClassification(classes=[0, 1]), rows, SMALL, 5)


def test_a_column_of_raw_pixels_has_its_shape_named(tmp_path):
    pixels = np.arange(3 * 784, dtype=np.uint8).reshape(3, 784)
    table = pa.table({
        "image": pa.array([row.tobytes() for row in pixels], pa.binary(784)),
        "label": pa.array([4, 9, 4], pa.uint8()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "digits.parquet")
    rows = load_rows(Source(name=tmp_path / "digits.parquet", split="train[1:]"))
    task = ImageClassification(image_shape=[28, 28], classes=[4, 9])
    encoded = encode(task, rows, DIGITS, 17)
    np.testing.assert_array_equal(encoded.arrays["pixel_values"], pixels[1:].reshape(2, 1, 28, 28))
    assert encoded.numbers["label"].tolist() == [1, 0]
    for wrong, found in (([28, 29], "812 bytes an image, and 784 bytes were found"), ([3, 3], "9 bytes an")):
        with pytest.raises(DataError, match=found):
            encode(ImageClassification(image_shape=wrong, classes=[4, 9]), rows, DIGITS, 17)


def test_arrays_of_whole_numbers_are_images(tmp_path):
    image = np.arange(16).reshape(4, 4)
    (tmp_path / "a.jsonl").write_text(json.dumps({"picture": image.tolist(), "kind": "x"}) + "\n")
    rows = load_rows(Source(name=tmp_path / "a.jsonl"))
    task = ImageClassification(image_column="picture", label_column="kind", classes=["x", "y"])
    found = task.features(rows[0], SMALL, 5)
    assert found["label"] == 0
    np.testing.assert_array_equal(found["pixel_values"], np.stack([image] * 3))


def test_rows_are_kept_in_bytes_and_batched_as_the_processor_would(folder):
    encoded = encode(ImageClassification(classes=[0, 1]), load_rows(Source(name=folder)), SMALL, 5)
    assert encoded.arrays["pixel_values"].dtype == np.uint8
    batch = encoded.batch(np.array([2, 0]), 5)
    assert batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"][0, 1], torch.full((4, 4), 240 / 127.5 - 1))


def test_images_for_a_model_of_text_are_refused(minilm_tokenizer, folder):
    rows = load_rows(Source(name=folder))
    with pytest.raises(DataError, match="gives images and the model reads text; choose a vision model"):
        encode(ImageClassification(classes=[0, 1]), rows, minilm_tokenizer, 16)


def test_mnist_has_ten_digits_of_784_bytes(shared):
    source = shared / "data" / "images" / "mnist_t10k.parquet"
    if not source.is_file():
        pytest.skip("needs mnist_t10k.parquet of the trial data beside the checkout")
    rows = load_rows(Source(name=source))
    task = ImageClassification(image_shape=[28, 28])
    assert task.labels(list(rows)) == 10
    encoded = encode(task, rows.select(range(3)), DIGITS, 17)
    assert encoded.numbers["label"].tolist() == [
        7,
        2,
        1,
    ]  # the first of the test set, as its papers print them
    assert 0.05 < (encoded.arrays["pixel_values"] > 127).mean() < 0.2  # bright ink on black
