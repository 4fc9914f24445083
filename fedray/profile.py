"""What one client declares, and the columns of a table of such declarations."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedray.assignment import ATTENTIONS, Attention
from fedray.errors import ConfigError

UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one client declares. Rates are sustained, not peak; a default changes no price.

    Attributes:
        device_class: the name reports group clients by.
        memory_bytes: what this job may hold at once, not the device's RAM.
        flops_per_s_bf16: None is the fp32 rate.
        availability: share of time online, 0 to 1.
        resources: Ray resources a client's own actor reserves, such as ``{"num_gpus": 1}``.
        data_size_rank: 0 to 1, where the client stands among all in size of data; a partitioner may use it.
        battery_joules: that the battery holds when it is full; infinity is a device on mains.
        charge_watts: that it gains while it is charging.
    """

    device_class: str
    memory_bytes: int
    flops_per_s_fp32: float
    up_bps: float
    down_bps: float
    flops_per_s_bf16: float | None = None
    storage_bytes: int = UNLIMITED_BYTES
    memory_bytes_per_s: float = math.inf
    rtt_seconds: float = 0.0
    attention: Attention = "memory_efficient"
    availability: float = 1.0
    compute_watts: float = 0.0
    idle_watts: float = 0.0
    radio_joules_per_byte: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict, hash=False)
    data_size_rank: float = 0.5
    battery_joules: float = math.inf
    charge_watts: float = 0.0


TEXT = pa.dictionary(pa.int32(), pa.string())
# The columns of a fleet: `Profile`'s fields, after the client's own number.
SCHEMA = pa.schema(
    [("client_id", pa.int64()), ("device_class", TEXT), ("memory_bytes", pa.int64())]
    + [(name, pa.float64()) for name in ("flops_per_s_fp32", "up_bps", "down_bps", "flops_per_s_bf16")]
    + [("storage_bytes", pa.int64())]
    + [(name, pa.float64()) for name in ("memory_bytes_per_s", "rtt_seconds")]
    + [("attention", TEXT), ("availability", pa.float64())]
    + [(name, pa.float64()) for name in ("compute_watts", "idle_watts", "radio_joules_per_byte")]
    + [("resources", TEXT)]
    + [(name, pa.float64()) for name in ("data_size_rank", "battery_joules", "charge_watts")]
)
_REQUIRED = tuple(f.name for f in dataclasses.fields(Profile))[:5]
_DEFAULTS: dict[str, Any] = {
    f.name: f.default for f in dataclasses.fields(Profile) if f.default is not dataclasses.MISSING
} | {"resources": "{}"}
# Closed intervals, so that one comparison of the least and one of the greatest value refuse NaN too.
_ABOVE_0, _FINITE = math.ulp(0.0), sys.float_info.max
_RANGES: dict[str, tuple[float, float, str]] = {
    "memory_bytes_per_s": (_ABOVE_0, math.inf, "above 0"),
    "battery_joules": (_ABOVE_0, math.inf, "above 0, or inf on mains"),
    "availability": (0.0, 1.0, "from 0 to 1"),
    "data_size_rank": (0.0, 1.0, "from 0 to 1"),
} | dict.fromkeys(
    ("memory_bytes", "flops_per_s_fp32", "flops_per_s_bf16", "up_bps", "down_bps"),
    (_ABOVE_0, _FINITE, "above 0 and finite"),
)


def conform(table: pa.Table, source: str) -> pa.Table:
    """The same clients with exactly the columns of `SCHEMA`, every value checked.

    Args:
        table: columns of `SCHEMA`; those with a default in `Profile` may be missing.
        source: where the table comes from, for messages.

    Raises:
        ConfigError: a missing or unknown column, a wrong type, an empty cell, a value out of range.
    """
    _check_names(table, source)
    columns = [_column(table, schema_field, source) for schema_field in SCHEMA]
    conformed = pa.Table.from_arrays(columns, schema=SCHEMA)
    _check_values(conformed, source)
    return conformed


def _check_names(table: pa.Table, source: str) -> None:
    known = ", ".join(SCHEMA.names)
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    unknown = [name for name in table.column_names if name not in SCHEMA.names]
    missing = [name for name in _REQUIRED if name not in table.column_names]
    for what, names in (("repeats the column", repeated), ("has an unknown column", unknown)):
        if names:
            raise ConfigError(f"{source} {what} {names[0]!r}; the columns are {known}.")
    if missing:
        raise ConfigError(f"{source} lacks the column {missing[0]!r}; it needs {', '.join(_REQUIRED)}.")
    if table.num_rows == 0:
        raise ConfigError(f"{source} has no clients; give it at least one row.")


def _column(table: pa.Table, schema_field: pa.Field, source: str) -> pa.Array | pa.ChunkedArray:
    name, kind, rows = schema_field.name, schema_field.type, table.num_rows
    if name == "client_id" and name not in table.column_names:
        return pa.array(np.arange(rows))
    if name == "flops_per_s_bf16" and name not in table.column_names:
        return _column(table, SCHEMA.field("flops_per_s_fp32"), source)
    if name not in table.column_names:
        if kind == TEXT:
            return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [_DEFAULTS[name]])
        return pa.array(np.full(rows, _DEFAULTS[name]), kind)
    column = table.column(name)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ConfigError(
            f"{source}: {name} is empty in {column.null_count} rows, first in row {row}; fill it."
        )
    try:
        if kind == TEXT and not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        return column.cast(kind).unify_dictionaries() if kind == TEXT else column.cast(kind)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{source}: {name} must hold {_wanted(kind)}, found {column.type}: {reason}."
        ) from error


def _wanted(kind: pa.DataType) -> str:
    if kind == TEXT:
        return "text"
    return "whole numbers" if kind == pa.int64() else "numbers"


def _check_values(table: pa.Table, source: str) -> None:
    for schema_field in SCHEMA:
        if schema_field.type != TEXT:
            _check_numbers(_pieces(table, schema_field.name), schema_field.name, source)
    first = 0
    for ids in _pieces(table, "client_id"):
        if not np.array_equal(ids, np.arange(first, first + len(ids))):
            raise ConfigError(f"{source}: client_id counts the rows from 0; sort it so, or leave it out.")
        first += len(ids)
    _check_batteries(table, source)
    for kernel in table.column("attention").chunk(0).dictionary.to_pylist():
        if kernel not in ATTENTIONS:
            raise ConfigError(f"{source}: attention is one of {', '.join(ATTENTIONS)}, found {kernel!r}.")
    for text in table.column("resources").chunk(0).dictionary.to_pylist():
        _check_resources(text, source)


def _check_batteries(table: pa.Table, source: str) -> None:
    watts = np.concatenate(_pieces(table, "charge_watts"))
    idle = np.flatnonzero((watts > 0) & np.isinf(np.concatenate(_pieces(table, "battery_joules"))))
    if len(idle):
        raise ConfigError(
            f"{source}: charge_watts is {watts[idle[0]]:g} in row {idle[0]}, which has no battery to charge "
            f"({len(idle)} such rows); give battery_joules there, or leave charge_watts at 0."
        )


def _pieces(table: pa.Table, name: str) -> list[NDArray[Any]]:
    # Chunk by chunk: merging a million rows would cost more than checking them.
    return [chunk.to_numpy() for chunk in table.column(name).chunks if len(chunk)]


def _check_numbers(pieces: list[NDArray[Any]], name: str, source: str) -> None:
    low, high, words = _RANGES.get(name, (0.0, _FINITE, "at least 0 and finite"))
    if all(piece.min() >= low and piece.max() <= high for piece in pieces):
        return
    values = np.concatenate(pieces)
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    raise ConfigError(
        f"{source}: {name} must be {words}, found {values[bad[0]]} in row {bad[0]} ({len(bad)} such rows)."
    )


def _check_resources(text: str, source: str) -> None:
    try:
        amounts = json.loads(text)
        good = isinstance(amounts, dict) and all(
            isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount < math.inf
            for amount in amounts.values()
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{source}: resources is a JSON object of names and amounts, such as "
            f'{{"num_gpus": 1}}, found {text!r}.'
        )
