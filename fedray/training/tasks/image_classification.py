"""Images to one of several classes: cross entropy over the class an image is labelled with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.errors import DataError
from fedray.model.images import ImageProcessor
from fedray.training.classification import Classification
from fedray.training.task import cell


@dataclass(kw_only=True)
class ImageClassification(Classification):
    """One label per image.

    Attributes:
        image_column: an image column of `datasets` (a folder of images is read as one), image files as bytes,
            or arrays of whole numbers 0 to 255, [height, width] or [height, width, 3].
        image_shape: of raw pixels, for a column of bytes that are no image files: [height, width], or
            [height, width, 3].
    """

    image_column: str = "image"
    image_shape: Sequence[int] | None = None

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """The image's pixels as the model's image processor makes them, in bytes, and ``label``.

        Raises:
            DataError: for a model of text, or what is no image.
        """
        image = cell(row, self.image_column)
        if not isinstance(tokenizer, ImageProcessor):
            raise DataError(
                "The task image_classification gives images and the model reads text; choose a vision model, "
                "such as google/vit-base-patch16-224-in21k, or another task."
            )
        if self.image_shape is not None:
            image = _of_shape(image, self.image_shape)
        return {"pixel_values": tokenizer(image), "label": self.class_id(row)}


def _of_shape(raw: Any, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    if not isinstance(raw, bytes) or len(raw) != np.prod(shape):
        found = f"{len(raw)} bytes" if isinstance(raw, bytes) else type(raw).__name__
        raise DataError(
            f"The option image_shape: {list(shape)} is for raw pixels, {np.prod(shape)} bytes an image, and "
            f"{found} were found; mend it, or drop it where images are files or arrays."
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)
