"""What every classification shares: its classes, cross entropy over them, and accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedray.errors import DataError
from fedray.training.task import Batch, Forward, Head, cell


@dataclass(kw_only=True)
class Classification:
    """One label per row; a task says beside it what the model reads of a row.

    Attributes:
        label_column: strings or whole numbers.
        classes: the labels in the order of the head's outputs; unless given, the sorted labels of all rows
            that `labels` is shown.
    """

    label_column: str = "label"
    classes: Sequence[str | int] | None = None
    head: Head = field(default="classification", init=False)
    _class_ids: dict[str | int, int] = field(default_factory=dict, init=False, repr=False)

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """The number of classes. Fixes them for `class_id`: show it all rows of the data set.

        Raises:
            DataError: for fewer than two classes, or labels of unlike types.
        """
        if self.classes is None:
            found = {cell(row, self.label_column) for row in rows}
            if len({type(label) for label in found}) > 1 or any(isinstance(label, float) for label in found):
                raise DataError(
                    f"The labels in {self.label_column!r} must all be strings or all whole numbers, found "
                    f"{', '.join(sorted({type(label).__name__ for label in found}))}; name another column."
                )
            self.classes = sorted(found)
        if len(self.classes) < 2:
            raise DataError(
                f"Classification needs two classes or more, and {self.label_column!r} has "
                f"{len(self.classes)}; name another label column or give more rows."
            )
        return len(self.classes)

    def class_id(self, row: Mapping[str, Any]) -> int:
        """The place of a row's label among the classes. Raises DataError for one that is none of them."""
        label = cell(row, self.label_column)
        if not self._class_ids:
            self._class_ids = {name: at for at, name in enumerate(self.classes or ())}
        if label not in self._class_ids:
            known = ", ".join(map(repr, list(self._class_ids)[:5])) or "none yet"
            raise DataError(
                f"A row has the label {label!r}, which is none of the {len(self._class_ids)} classes "
                f"({known}, ...): show labels() all rows of the data set first, or list it in classes."
            )
        return self._class_ids[label]

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Cross entropy of each row, [rows]; in fp32 for half-precision logits."""
        return _cross_entropy(forward(batch), batch)

    def outputs(self, forward: Forward, batch: Batch) -> list[Mapping[str, Any]]:
        """Of each row the class said, the class meant, and the loss."""
        logits = forward(batch)
        losses = _cross_entropy(logits, batch).tolist()
        said = logits.argmax(-1).tolist()
        return [
            {"predicted": guess, "label": label, "correct": int(guess == label), "loss": loss}
            for guess, label, loss in zip(said, batch["label"].tolist(), losses, strict=True)
        ]

    def metrics(
        self, outputs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """``accuracy``, ``loss``, and ``largest_class``: what always saying the commonest one reaches."""
        labels = [output["label"] for output in outputs]
        return {
            "accuracy": float(np.mean([output["correct"] for output in outputs])),
            "loss": float(np.mean([output["loss"] for output in outputs])),
            "largest_class": max(np.bincount(labels)) / len(labels),
        }


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(precise, batch["label"], reduction="none")
