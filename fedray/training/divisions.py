"""Ways to divide rows among clients, each drawn by flwr-datasets from a seed of ours."""

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any, assert_never

import datasets
import numpy as np
from flwr_datasets import partitioner
from numpy.typing import NDArray

from fedray.errors import DataError
from fedray.seeds import derive_seed, generator

Rows = NDArray[np.int64]  # row numbers of the data set

# flwr-datasets gives up after 11 draws of its own; a small minimum often needs a few more.
_DIRICHLET_SEEDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Iid:
    """Equal shares of the shuffled rows."""

    num_clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet:
    """Of every label, shares drawn from Dirichlet(alpha): the smaller, the more unlike (1905.12022)."""

    num_clients: int
    label_column: str
    alpha: float
    min_partition_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalId:
    """One client for every value of a column (a speaker, an author, a device).

    Attributes:
        min_rows: clients with fewer rows are left out.
        max_clients: at most so many clients, unseen ones among them, drawn by the seed.
    """

    column: str
    min_rows: int = 1
    max_clients: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pathological:
    """Every client holds so many labels only (1602.05629, section 3)."""

    num_clients: int
    label_column: str
    num_classes_per_partition: int


Partitioning = Iid | Dirichlet | NaturalId | Pathological


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one client to be, in rising order; its name where a column names it."""

    name: str
    rows: Rows


def natural_parts(rows: datasets.Dataset, how: NaturalId) -> list[Part]:
    """One part for every value with enough rows, in the order of the sorted values. Raises DataError."""
    names, codes = _codes(rows, how.column)
    parts = _drawn(partitioner.NaturalIdPartitioner(partition_by="code"), np.arange(len(rows)), codes)
    kept = [
        Part(name=str(name), rows=part)
        for name, part in zip(names, parts, strict=True)
        if len(part) >= how.min_rows
    ]
    if not kept:
        raise DataError(
            f"No value of {how.column!r} has {how.min_rows} rows (min_rows); the largest of {len(parts)} "
            f"has {max(map(len, parts))}: lower min_rows."
        )
    return kept


def synthetic_parts(
    rows: datasets.Dataset, how: Iid | Dirichlet | Pathological, pool: Rows, seed: int
) -> list[Part]:
    """The pool's rows in so many parts; a label that no part drew is in none. Raises DataError."""
    if not 1 <= how.num_clients <= len(pool):
        raise DataError(
            f"{how.num_clients} clients cannot share {len(pool)} rows; there are 1 to {len(pool)} of them."
        )
    match how:
        case Iid():
            order = generator(seed, "iid").permutation(pool)
            division = partitioner.IidPartitioner(num_partitions=how.num_clients)
            parts = _drawn(division, order, np.zeros(len(rows), np.int64))
        case Dirichlet():
            parts = _dirichlet(how, pool, _codes(rows, how.label_column)[1], seed)
        case Pathological():
            parts = _pathological(how, pool, _codes(rows, how.label_column)[1], seed)
        case _:
            assert_never(how)
    return [Part(name="", rows=part) for part in parts]


def _dirichlet(how: Dirichlet, pool: Rows, codes: Rows, seed: int) -> list[Rows]:
    if how.alpha <= 0:
        raise DataError(f"Dirichlet alpha must be above 0, found {how.alpha}.")
    for attempt in range(_DIRICHLET_SEEDS):
        division = partitioner.DirichletPartitioner(
            num_partitions=how.num_clients,
            partition_by="code",
            alpha=float(how.alpha),
            min_partition_size=how.min_partition_size,
            self_balancing=False,
            seed=derive_seed(seed, "dirichlet", attempt),
        )
        # It warns of every draw it repeats and raises after the last: one sentence below says it.
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _drawn(division, pool, codes)
    raise DataError(
        f"Dirichlet with alpha {how.alpha} gave all of {how.num_clients} clients {how.min_partition_size} "
        f"rows in none of its draws of {len(pool)}; lower min_partition_size, raise alpha, use fewer clients."
    )


def _pathological(how: Pathological, pool: Rows, codes: Rows, seed: int) -> list[Rows]:
    division = partitioner.PathologicalPartitioner(
        num_partitions=how.num_clients,
        partition_by="code",
        num_classes_per_partition=how.num_classes_per_partition,
        class_assignment_mode="random",
        seed=derive_seed(seed, "pathological"),
    )
    try:
        with warnings.catch_warnings():
            # Labels that no client drew are reported as unused rows.
            warnings.simplefilter("ignore")
            return _drawn(division, pool, codes)
    except ValueError as error:
        raise DataError(
            f"{how.num_clients} clients cannot hold {how.num_classes_per_partition} labels: {len(pool)} "
            f"rows have {len(np.unique(codes[pool]))} labels, and no label is split among more clients than "
            f"it has rows; use fewer clients or labels per client."
        ) from error


def _codes(rows: datasets.Dataset, column: str) -> tuple[NDArray[Any], Rows]:
    """A column's sorted values, and each row's place among them, [rows]."""
    if column not in rows.column_names:
        raise DataError(
            f"The partition needs the column {column!r}, and the data has {', '.join(rows.column_names)}; "
            f"name one of these."
        )
    values = np.asarray(rows[column][:])
    if values.ndim != 1 or values.dtype == object:
        raise DataError(
            f"The column {column!r} that divides the data must hold a string or a number in every row; "
            f"fill what is missing or choose another of {', '.join(rows.column_names)}."
        )
    names, codes = np.unique(values, return_inverse=True)
    return names, codes.astype(np.int64)


def _drawn(division: partitioner.partitioner.Partitioner, pool: Rows, codes: Rows) -> list[Rows]:
    """Each partition's rows: the partitioner divides row numbers and codes, never the texts."""
    division.dataset = datasets.Dataset.from_dict({"row": pool, "code": codes[pool]})
    # One of them draws a progress bar.
    with contextlib.redirect_stderr(io.StringIO()):
        return [
            np.sort(np.asarray(division.load_partition(client)["row"][:], np.int64))
            for client in range(division.num_partitions)
        ]
