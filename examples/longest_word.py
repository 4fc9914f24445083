"""A task of one's own: is a docstring's longest word longer than twelve letters?"""

from fedray.training.tasks.text_classification import TextClassification


class LongestWord(TextClassification):
    """Text classification whose label is computed from the text."""

    def labels(self, rows: object) -> int:
        """Two: no and yes."""
        self.classes = (0, 1)
        return 2

    def features(self, row, tokenizer, max_length):  # noqa: ANN001, ANN201
        """The text's ids, and whether its longest word has more than twelve letters."""
        longest = max(map(len, row["text"].split()), default=0)
        return super().features({**row, "label": int(longest > 12)}, tokenizer, max_length)
