"""The task's contract: features of a row, one loss per row, what to keep for the metrics.

A task is a file like a policy, found by name or by path. Its loss gives one value per row and never
mixes rows, so rows of many clients can share one forward pass.

A task file holds one class with the members of `Task`, under any name; the options of the
configuration are its constructor's arguments.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

from torch import Tensor

from fedray.errors import ConfigError, DataError
from fedray.python_file import run_file

Head = Literal["classification", "causal_lm"]
# Every tensor is [rows, ...]; input_ids and attention_mask are [rows, tokens], and pixel_values, which vision
# models read in the place of input_ids, are [rows, channels, height, width].
Batch = Mapping[str, Tensor]


class Forward(Protocol):
    """The model under the clients' adapters, as a loss sees it."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits: [rows, labels] for a classification head, [rows, tokens, vocabulary] for a causal LM."""

    def without_adapter(self, batch: Batch) -> Tensor:
        """The reference model's logits, without gradient."""


class Answered:
    """A `Forward` for a batch whose logits are there already."""

    def __init__(self, logits: Tensor) -> None:
        """Args: logits: of the rows that the loss will ask about; `read_by_loss` saw that it asks no more."""
        self._logits = logits

    def __call__(self, batch: Batch) -> Tensor:
        """The logits."""
        return self._logits

    def without_adapter(self, batch: Batch) -> Tensor:
        """Never asked for."""
        raise AssertionError("read_by_loss refuses a loss that asks for the reference model")


class Task(Protocol):
    """What is learnt."""

    head: Head

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many outputs the head needs for these rows (causal LM: 0, the model has its own)."""

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """What the model reads of one row, and whatever the loss does, by name.

        Args:
            row: of the data set.
            tokenizer: of the model; for a vision model its `fedray.model.images.ImageProcessor`.
            max_length: tokens of a row at most; of an image all that the model makes of it.

        Returns:
            ``input_ids`` (a list), or ``pixel_values`` (bytes [C, H, W], as the image processor makes them);
            beside them lists as long as there are tokens, single numbers, or arrays of one shape in all rows.
        """

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """One value per row, [rows]."""

    def outputs(self, forward: Forward, batch: Batch) -> list[Mapping[str, Any]]:
        """What `metrics` needs of each row, as plain numbers; called without gradient."""

    def metrics(
        self, outputs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """``accuracy`` and ``loss`` (both averages over rows) and any others."""


MEMBERS = ("head", "labels", "features", "loss", "outputs", "metrics")
_SHIPPED = "fedray.training.tasks"


def cell(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column. Raises DataError, which lists the columns, where there is none."""
    if column not in row:
        raise DataError(
            f"The task reads the column {column!r}, and the rows have {', '.join(row)}; "
            f"name the right one in the task's options."
        )
    if row[column] is None:
        raise DataError(
            f"A row has nothing in the column {column!r} that the task reads; fill or drop such rows."
        )
    return row[column]


def task_names() -> tuple[str, ...]:
    """The tasks that fedray ships."""
    shipped = importlib.import_module(_SHIPPED)
    return tuple(sorted(module.name for module in pkgutil.iter_modules(shipped.__path__)))


def load_task(name_or_path: str | Path, options: Mapping[str, Any] | None = None) -> Task:
    """The task of this name, or of the file at this path, made with these options.

    A task keeps what it learnt of the rows (its classes, a tokenizer), so other processes are sent the
    task itself and not its name; the module of one from a file is in ``sys.modules``.

    Args:
        name_or_path: one of `task_names`, or a path that ends in .py.
        options: arguments of the class.

    Raises:
        ConfigError: if there is no such task, its file does not run or holds no task or several, or an
            option is not one of its own.
    """
    kind = _task_class(_module(name_or_path), str(name_or_path))
    known = inspect.signature(kind).parameters
    unknown = [name for name in options or {} if name not in known]
    if unknown:
        raise ConfigError(
            f"The task {str(name_or_path)!r} has no option {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(known) or 'none'}."
        )
    try:
        return cast(Task, kind(**(options or {})))
    except TypeError as error:
        raise ConfigError(
            f"The task {str(name_or_path)!r} cannot be made with {options}: {error}."
        ) from error


def _module(name_or_path: str | Path) -> ModuleType:
    if str(name_or_path) in task_names():
        return importlib.import_module(f"{_SHIPPED}.{name_or_path}")
    path = Path(name_or_path)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"There is no task {str(name_or_path)!r}: give one of {', '.join(task_names())}, or the path of "
            f"an existing .py file (looked for {path.absolute()})."
        )
    try:
        return run_file(path, "task")
    except Exception as error:
        raise ConfigError(f"The task file {path} does not run: {type(error).__name__}: {error}.") from error


def _task_class(module: ModuleType, name: str) -> type:
    own = [
        kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__
    ]
    tasks = [kind for kind in own if all(hasattr(kind, member) for member in MEMBERS)]
    if len(tasks) == 1:
        return tasks[0]
    if tasks:
        found = f"{len(tasks)} of them: {', '.join(kind.__name__ for kind in tasks)}"
    else:
        lacks = [f"{k.__name__} without {', '.join(m for m in MEMBERS if not hasattr(k, m))}" for k in own]
        found = "; ".join(lacks) or "no class"
    raise ConfigError(f"A task file holds one class with {', '.join(MEMBERS)}; {name!r} holds {found}.")
