"""Rows as a step needs them: features once per row, batches of fixed shape, and the order of batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedray.errors import ConfigError, DataError
from fedray.model.anatomy import Anatomy
from fedray.model.families import Inputs
from fedray.model.images import ImageProcessor
from fedray.seeds import generator
from fedray.training.task import Batch, Task

Rows = NDArray[np.int64]

# Rows are padded to a multiple of this many tokens.
TOKEN_MULTIPLE = 8
# A text has at most so many tokens unless a configuration says otherwise.
TEXT_TOKENS = 128
# In place of a row number: a row of weight 0 that fills a batch up.
FILLER = -1
# What a list is padded with; -100 is the label that every loss of torch and transformers ignores.
PADDING = {"labels": -100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The features of all rows of a data set, kept end to end: a batch of any rows is one gather.

    Plain arrays, so that processes on one machine share them without copies.

    Attributes:
        lengths: tokens of each row, [rows].
        starts: where each row begins in a list, [rows].
        lists: by name, all rows end to end, [sum of lengths].
        numbers: by name, one per row, [rows].
        pad_id: what ``input_ids`` are padded with.
        arrays: by name, of one shape in every row, [rows, ...].
        levels: of an array of bytes, [rows, C, ...], what each byte stands for in a batch, [C, 256].
    """

    lengths: Rows
    starts: Rows
    lists: Mapping[str, NDArray[Any]]
    numbers: Mapping[str, NDArray[Any]]
    pad_id: int
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    levels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.lengths)

    def batch(self, rows: Rows, tokens: int) -> Batch:
        """These rows padded to ``tokens``, [N, T] a list, [N] a number and [N, ...] an array.

        Beside the features it holds ``attention_mask`` (1 on real tokens, unless the task made one) and
        ``weight`` (float, 1 or 0). A row number of -1 makes a filler of weight 0: padding alone, labels
        ignored, arrays zero, and its first token attended to, since a softmax over nothing is not a number.

        Raises:
            DataError: for a row that is longer.
        """
        real = rows >= 0
        lengths = np.where(real, self.lengths[rows], 0)
        if len(rows) and lengths.max() > tokens:
            long = int(lengths.argmax())
            raise DataError(
                f"Row {rows[long]} has {lengths[long]} tokens and the batch {tokens}; ask for more."
            )
        column = np.arange(tokens)
        is_token = column < lengths[:, None]  # [N, T]
        at = np.where(is_token, self.starts[rows][:, None] + column, 0)
        padded = {
            name: np.where(is_token, values[at], self.pad_id if name == "input_ids" else PADDING.get(name, 0))
            for name, values in self.lists.items()
        }
        mask = padded.setdefault("attention_mask", is_token)
        mask[~real, 0] = 1
        padded |= {name: np.where(real, values[rows], 0) for name, values in self.numbers.items()}
        padded |= {name: self._array(name, rows) for name in self.arrays}
        tensors = {name: torch.from_numpy(_widened(values)) for name, values in padded.items()}
        return {**tensors, "weight": torch.from_numpy(real.astype(np.float32))}

    def _array(self, name: str, rows: Rows) -> NDArray[Any]:
        taken = self.arrays[name][rows]
        taken[rows < 0] = 0
        levels = self.levels.get(name)
        if levels is None:
            return taken
        channels = np.arange(len(levels)).reshape(-1, *[1] * (taken.ndim - 2))
        numbers: NDArray[np.float32] = levels[channels, taken]
        return numbers


def collate(encoded: Encoded, indices: Rows, tokens: int, rows: int) -> Batch:
    """The rows at ``indices`` as a batch of ``rows`` rows; what is missing is filler of weight 0."""
    if len(indices) > rows:
        raise DataError(f"{len(indices)} rows do not fit into a batch of {rows}.")
    return encoded.batch(np.concatenate([indices, np.full(rows - len(indices), FILLER)]), tokens)


def encode(task: Task, rows: Iterable[Mapping[str, Any]], processor: Any, max_length: int) -> Encoded:
    """Ask the task for the features of every row, once.

    Args:
        task: whose features; one that fixes classes has seen all rows before.
        rows: of a data set.
        processor: of the model. A tokenizer's pad token, or its end of text, or 0 pads; what an image
            processor makes of a byte is looked up in each batch, so rows are kept in bytes.
        max_length: in tokens; those of every row where images go in.

    Raises:
        DataError: for no rows, a row without tokens or with too many, or features of an unpromised shape.
    """
    features = [dict(task.features(row, processor, max_length)) for row in rows]
    if not features:
        raise DataError("There are no rows to encode; give a data set or a split that has some.")
    images = isinstance(processor, ImageProcessor)
    lengths = np.array([
        _length(at, found, features[0], "pixel_values" if images else "input_ids", max_length)
        for at, found in enumerate(features)
    ])  # fmt: skip
    forms = {name: _form(value) for name, value in features[0].items()}
    columns = {name: [found[name] for found in features] for name in forms}
    return Encoded(
        lengths=lengths,
        starts=np.cumsum(lengths) - lengths,
        lists={name: _flat(columns[name]) for name, form in forms.items() if form == "list"},
        numbers={name: _flat([columns[name]]) for name, form in forms.items() if form == "number"},
        pad_id=0 if images else _pad_id(processor),
        arrays={name: _stacked(columns[name]) for name, form in forms.items() if isinstance(form, tuple)},
        levels={"pixel_values": processor.levels} if images else {},
    )


def _length(
    at: int, found: Mapping[str, Any], first: Mapping[str, Any], inputs: Inputs, max_length: int
) -> int:
    if found.keys() != first.keys() or inputs not in found:
        raise DataError(
            f"The task gave row {at} the features {', '.join(found) or 'none'} and row 0 "
            f"{', '.join(first) or 'none'}; every row needs the same ones, {inputs} among them."
        )
    length = len(found["input_ids"]) if inputs == "input_ids" else max_length
    if not 0 < length <= max_length:
        raise DataError(
            f"Row {at} has {length} tokens, and 1 to {max_length} are possible; "
            f"drop empty rows, or let the task cut long ones at max_length."
        )
    for name, value in found.items():
        form = _form(value)
        if form != _form(first[name]) or (form == "list" and len(value) != length):
            raise DataError(
                f"The task's feature {name!r} of row {at} is neither a number in every row nor a list as "
                f"long as its {length} tokens, nor an array of one shape in every row; pad or drop it."
            )
    return length


def _form(value: Any) -> str | tuple[int, ...]:
    """Whether a feature is a number, a list of one a token, or an array, and then its shape."""
    if isinstance(value, np.ndarray) and value.ndim > 1:
        return tuple(value.shape)
    return "list" if isinstance(value, list | tuple | np.ndarray) else "number"


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    values = np.stack(arrays)
    return values if values.dtype == np.uint8 else _narrow(values)


def _flat(lists: Sequence[Sequence[float]]) -> NDArray[Any]:
    return _narrow(np.concatenate([np.asarray(values) for values in lists]))


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    # int32 holds every token id in half the bytes; torch gets int64.
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind not in "iub":
        raise DataError(
            f"A task's features are numbers, found {str(values[0])!r}; turn text into ids in features()."
        )
    small = len(values) == 0 or max(abs(int(values.min())), abs(int(values.max()))) < 2**31
    return values.astype(np.int32 if small else np.int64)


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype.kind == "f" else values.astype(np.int64)


def _pad_id(tokenizer: Any) -> int:
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(found) for found in ids if found is not None)


def longest_row(anatomy: Anatomy, max_length: int | None) -> int:
    """Tokens of a row at most; where images go in, of every row.

    Args:
        anatomy: of the model.
        max_length: what the configuration asks for.

    Raises:
        ConfigError: for a limit on images, whose length is the model's.
    """
    if anatomy.takes_text:
        return TEXT_TOKENS if max_length is None else max_length
    tokens = anatomy.max_tokens
    assert tokens is not None, "a family of images knows their length"
    if max_length is not None:
        raise ConfigError(
            f"data.max_length = {max_length} has no effect on images, of which this "
            f"{anatomy.model.config.model_type} model makes {tokens} tokens each; drop it."
        )
    return tokens


def bucket(length: int, multiple: int, max_length: int) -> int:
    """The tokens a row of this length is padded to: few distinct shapes, little padding.

    Raises:
        DataError: if the row is longer than ``max_length``.
    """
    if length > max_length:
        raise DataError(
            f"A row of {length} tokens does not fit max_length = {max_length}; raise it or cut the row."
        )
    return min(-(-max(length, 1) // multiple) * multiple, max_length)


def batch_plan(
    num_rows: int, batch_size: int, num_epochs: int = 1, max_steps: int | None = None, seed: int = 0
) -> list[Rows]:
    """Which of a client's own rows each local step takes, as places 0 to ``num_rows`` - 1.

    Every epoch is one pass in an order of its own; the last batch of an epoch may be short. With
    ``max_steps`` there are as many epochs as it needs. Drawn from the seed alone.
    """
    if num_rows < 1:
        raise DataError("A client without rows has no steps; give it rows or leave it out.")
    steps_per_epoch = -(-num_rows // batch_size)
    num_steps = num_epochs * steps_per_epoch if max_steps is None else max_steps
    plan: list[Rows] = []
    for epoch in range(-(-num_steps // steps_per_epoch)):
        order = generator(seed, "epoch", epoch).permutation(num_rows)
        plan += [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]
    return plan[:num_steps]
