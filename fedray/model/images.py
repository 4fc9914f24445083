"""Images as a vision model takes them: all of one shape, and kept in a byte a number until they are batched.

Resizing, cropping and normalising are what the checkpoint's own image processor does.

Letters of shapes: C channels, H height, W width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from transformers import AutoImageProcessor, PreTrainedConfig, ViTImageProcessorPil

from fedray.errors import DataError, ModelError

_CONFIG = "preprocessor_config.json"
_MODES = {1: "L", 3: "RGB"}
# The two halves of what a processor does.
_SHAPING_ALONE = {"do_rescale": False, "do_normalize": False}
_NUMBERS_ALONE = {"do_resize": False, "do_center_crop": False}


class ImageProcessor:
    """Stands where a tokenizer does, for models that read images.

    Attributes:
        shape: of every image, C, H and W.
        levels: the number that the model reads for each byte of each channel, [C, 256].
    """

    def __init__(self, own: Any, config: PreTrainedConfig) -> None:
        """A checkpoint's processor, on PIL and numpy, beside its model's configuration.

        Raises:
            ModelError: for a model of other than 1 or 3 channels, or a processor of other images than its.
        """
        self.shape = (int(config.num_channels), *_size(config))
        self._own = own
        if self.shape[0] not in _MODES:
            raise ModelError(
                f"The model reads images of {self.shape[0]} channels; known are 1 (grey) and 3 (RGB)."
            )
        # A byte has 256 values: what rescaling and normalising make of each is all there is to know of them.
        every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(self.shape[0], axis=0)
        numbers = self._processed(every, _NUMBERS_ALONE)
        self.levels = numbers.reshape(self.shape[0], 256).astype(np.float32)
        self(every[0])  # so that another size than the model's is refused before any row is read

    def save_pretrained(self, folder: Path) -> None:
        """As a checkpoint keeps it."""
        self._own.save_pretrained(folder)

    def __call__(self, image: Any, **_: object) -> NDArray[np.uint8]:
        """An image's pixels, [C, H, W], before they are normalised.

        Args:
            image: a PIL image, an image file's bytes, a cell of a `datasets` image column, or whole numbers 0
                to 255 as [H, W], [H, W, C] or [C, H, W] of any size; grey becomes RGB for a model of that.
            _: what a task says to a tokenizer, and then gives it a text, which is refused.

        Raises:
            DataError: for what is no image.
            ModelError: if the processor makes another shape of it than the model takes.
        """
        picture = _picture(image).convert(_MODES[self.shape[0]])
        pixels = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
        made = self._processed(pixels, _SHAPING_ALONE)
        if made.shape != self.shape or made.dtype != np.uint8:
            raise ModelError(
                f"The model's image processor makes {_by(made.shape)} pixels of {made.dtype} of an image of "
                f"{_by(pixels.shape)}, and the model takes {_by(self.shape)} bytes; set size, or crop_size, "
                f"in its {_CONFIG} to the image_size of its config.json."
            )
        return made

    def _processed(self, pixels: NDArray[np.uint8], half: Mapping[str, bool]) -> NDArray[Any]:
        try:
            done = self._own(pixels, input_data_format="channels_first", return_tensors="np", **half)
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"The model's image processor does not take an image of {_by(pixels.shape)} ({error}); mend "
                f"its {_CONFIG}, image_mean and image_std for {self.shape[0]} channels among it."
            ) from error
        processed: NDArray[Any] = done["pixel_values"][0]
        return processed


def load_image_processor(source: str, config: PreTrainedConfig) -> ImageProcessor:
    """The image processor of a model's folder or Hugging Face id.

    A folder without one gets ViT's own: stretched to the model's size, and from -1 to 1.

    Raises:
        OSError: nothing is found under a Hugging Face id.
        ModelError: it does not fit the model.
    """
    if Path(source).is_dir() and not (Path(source) / _CONFIG).is_file():
        half = [0.5] * int(config.num_channels)
        size = dict(zip(("height", "width"), _size(config), strict=True))
        return ImageProcessor(ViTImageProcessorPil(size=size, image_mean=half, image_std=half), config)
    # Named, so that pixels do not depend on whether torchvision is installed.
    own = AutoImageProcessor.from_pretrained(source, backend="pil")  # type: ignore[no-untyped-call]
    return ImageProcessor(own, config)


def _size(config: PreTrainedConfig) -> tuple[int, int]:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _picture(image: Any) -> PIL.Image.Image:
    if isinstance(image, PIL.Image.Image):
        return image
    if isinstance(image, str):
        raise DataError(
            f"This model reads images, and the task gave it a text ({image[:40]!r}); choose the task "
            f"image_classification, or a model of text."
        )
    if not isinstance(image, bytes | Mapping):
        return PIL.Image.fromarray(_pixels(image))
    # Actors train on rows that are encoded already: they start without it a sixth sooner.
    from datasets import Image

    cell: Mapping[str, Any] = image if isinstance(image, Mapping) else {"bytes": image, "path": None}
    try:
        picture: PIL.Image.Image = Image().decode_example(dict(cell))
    except (OSError, ValueError) as error:
        found = cell["path"] or f"{len(cell['bytes'])} bytes"
        raise DataError(
            f"Pillow reads no image from {found} ({str(error).splitlines()[0]}); drop such rows, or if these "
            f"are raw pixels, give their shape to image_classification as image_shape, such as [28, 28]."
        ) from error
    return picture


def _pixels(image: Any) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] not in _MODES and pixels.shape[0] in _MODES:
        pixels = pixels.transpose(1, 2, 0)
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    shaped = grey or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not shaped or not pixels.size or pixels.dtype.kind not in "iu":
        raise DataError(
            f"An image is whole numbers as [height, width] or [height, width, 3], or a picture that Pillow "
            f"reads; found {type(image).__name__} of shape {list(pixels.shape)} and type {pixels.dtype}."
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise DataError(
            f"An image's numbers go from 0 to 255, found {pixels.min()} to {pixels.max()}; scale them so."
        )
    return pixels.reshape(pixels.shape[:2] if grey else pixels.shape).astype(np.uint8)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
