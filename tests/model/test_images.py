"""What a model reads of an image is what its checkpoint's own processor says, kept in a byte a number."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from transformers import AutoImageProcessor, CLIPImageProcessorPil, ViTConfig, ViTImageProcessorPil

from fedray.errors import DataError, ModelError
from fedray.model.images import ImageProcessor, load_image_processor

RGB = ViTConfig(image_size=[8, 12])
GREY = ViTConfig(image_size=8, num_channels=1)
# As the checkpoints of ImageNet-21k have it: one side alone, and no class of a processor.
OLD = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 8}


def picture(mode: str = "RGB", size: tuple[int, int] = (17, 9)) -> PIL.Image.Image:
    random = np.random.default_rng(3)
    width, height = size
    return PIL.Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)


def read(processor: ImageProcessor, image: object) -> np.ndarray:
    """What a batch makes of it, [C, H, W]."""
    pixels = processor(image)
    assert pixels.dtype == np.uint8
    return processor.levels[np.arange(len(pixels))[:, None, None], pixels]


@pytest.mark.parametrize(
    "own",
    [
        ViTImageProcessorPil(size={"height": 8, "width": 12}),
        ViTImageProcessorPil(
            size={"height": 8, "width": 12}, resample=3, image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.2, 0.1]
        ),
        CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size={"height": 8, "width": 12}),
        ViTImageProcessorPil(size={"height": 8, "width": 12}, do_normalize=False),
    ],
    ids=["vit", "unlike channels", "crop", "rescaled alone"],
)
def test_the_numbers_are_those_of_the_checkpoints_own_processor(own: object) -> None:
    for size in ((17, 9), (12, 8), (300, 200)):
        image = picture(size=size)
        theirs = own(image, return_tensors="np")["pixel_values"][0]  # type: ignore[operator]
        np.testing.assert_array_equal(read(ImageProcessor(own, RGB), image), theirs)


def test_every_form_of_an_image_gives_the_same_pixels() -> None:
    processor = ImageProcessor(ViTImageProcessorPil(size={"height": 8, "width": 12}), RGB)
    image = picture()
    encoded = io.BytesIO()
    image.save(encoded, "png")
    column = datasets.Dataset.from_dict({"image": [image]}, datasets.Features({"image": datasets.Image()}))
    cell = column.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert set(cell) == {"bytes", "path"}
    array = np.asarray(image)
    forms = (
        encoded.getvalue(),
        cell,
        array,
        array.tolist(),
        array.transpose(2, 0, 1),
        array.astype(np.int64),
    )
    for form in forms:
        np.testing.assert_array_equal(processor(form), processor(image))


def test_grey_becomes_three_equal_channels_and_colours_become_grey() -> None:
    rgb = ImageProcessor(ViTImageProcessorPil(size={"height": 8, "width": 12}), RGB)
    for grey in (picture("L"), np.asarray(picture("L")), np.asarray(picture("L"))[..., None]):
        pixels = rgb(grey)
        assert (pixels == pixels[:1]).all()
    own = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    one = ImageProcessor(own, GREY)
    assert one(picture("RGB")).shape == (1, 8, 8)
    # Pillow's grey is ITU-R 601-2 luma: 0.299 R + 0.587 G + 0.114 B.
    assert one(np.full((8, 8, 3), [255, 0, 0], np.uint8))[0, 0, 0] == round(0.299 * 255)


def test_a_folder_without_a_processor_goes_from_minus_one_to_one(tmp_path: Path) -> None:
    processor = load_image_processor(str(tmp_path), GREY)
    assert processor.shape == (1, 8, 8)
    np.testing.assert_allclose(processor.levels[0], np.arange(256) / 127.5 - 1, atol=1e-6)


def test_a_folder_with_one_is_read_by_it_whatever_its_age(tmp_path: Path) -> None:
    square = ViTConfig(image_size=8)
    square.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**OLD, "image_mean": [0.2] * 3}))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = picture()
    np.testing.assert_array_equal(
        read(load_image_processor(str(tmp_path), square), image),
        theirs(image, return_tensors="np")["pixel_values"][0],
    )


def test_a_processor_of_other_images_than_the_models_is_refused() -> None:
    with pytest.raises(ModelError, match=r"makes 3 x 224 x 224 pixels .* takes 3 x 8 x 12 bytes; set size"):
        ImageProcessor(ViTImageProcessorPil(), RGB)
    with pytest.raises(ModelError, match=r"does not take an image of 1 x 16 x 16 .* for 1 channels"):
        ImageProcessor(ViTImageProcessorPil(size={"height": 8, "width": 8}), GREY)
    with pytest.raises(ModelError, match="reads images of 5 channels; known are 1"):
        ImageProcessor(ViTImageProcessorPil(), ViTConfig(num_channels=5))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("a text", r"reads images, and the task gave it a text \('a text'\); choose the task image_class"),
        (bytes(784), r"reads no image from 784 bytes .* as image_shape, such as \[28, 28\]"),
        ({"bytes": None, "path": "none.png"}, r"reads no image from none\.png .*; drop such rows"),
        (np.full((4, 4), 0.5), r"whole numbers .*; found ndarray of shape \[4, 4\] and type float64"),
        ([1, 2, 3], r"found list of shape \[3\] and type int64"),
        (np.full((4, 4), 300), r"go from 0 to 255, found 300 to 300; scale"),
        (None, r"found NoneType of shape \[\] and type object"),
    ],
)
def test_what_is_no_image_is_answered_with_what_is(image: object, sentence: str) -> None:
    processor = ImageProcessor(ViTImageProcessorPil(size={"height": 8, "width": 12}), RGB)
    with pytest.raises(DataError, match=sentence):
        processor(image, truncation=True, max_length=8)
