"""Text to one of several classes: cross entropy over the class a row is labelled with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedray.training.classification import Classification
from fedray.training.task import cell


@dataclass(kw_only=True)
class TextClassification(Classification):
    """One label per text.

    Attributes:
        text_column: the text.
    """

    text_column: str = "text"

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """The text's ids, cut at ``max_length``, and ``label``, the place of its class."""
        text, label = str(cell(row, self.text_column)), self.class_id(row)
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        return {"input_ids": ids, "label": label}
