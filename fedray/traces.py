"""Traces of who was online when, from files of FedScale, FLASH and anybody: read as data, never run.

FedScale ships its traces as pickles, which run code when they are loaded; these are refused, with a line
that turns one into JSON.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.seeds import generator
from fedray.sessions import Sessions

_NAMES = {
    "client": ("client", "client_id"),
    "start": ("start_s", "start_seconds"),
    "end": ("end_s", "end_seconds"),
}
# FLASH counts its seconds from here, in the phone's own time.
_FLASH_ZERO = datetime(2020, 1, 2)
_FLASH_FORMAT = "%Y-%m-%d %H:%M:%S"


def load_sessions(
    path: Path, *, kind: str | None = None, period_seconds: float | None = None, charging: bool = False
) -> Sessions:
    """The sessions of a trace, a row for each of its clients, in the order of their ids or of the file.

    Parquet and CSV have a row for each interval: client (whole numbers), start_s and end_s, and a column of
    text if there are several kinds (``policy``: strict, loose), and in Parquet's metadata ``clients_total``
    if some are never online; or as FedScale's a row for each client with
    lists, active_s and inactive_s, and trace_length_s. JSON is an object by client, of one of these:

    * ``[[start, end], ...]`` in seconds;
    * FedScale's ``{"active": [...], "inactive": [...], "finish_time": ...}``: online from each moment of the
      one to the moment of the other at its place;
    * ``{"ready_time": [[start, end], ...], "trace_start": ..., "trace_end": ...}``, FLASH's cached timers;
    * ``{"messages": ...}``, FLASH's logs of phones, a moment and what happened in a line, with a tab between:
      online, as in its code, while locked, charging and on Wi-Fi; or with ``charging`` while charging.

    Args:
        path: of the file.
        kind: of a table's intervals; the others are left out.
        period_seconds: after which all rows start again; if absent each row's own where the file says one,
            or else the latest end in whole hours.
        charging: intervals are of devices that charge; of FLASH's logs those are then read.

    Raises:
        ConfigError: no such file, another form, or an interval that is none.
    """
    if not path.is_file():
        raise ConfigError(f"There is no availability trace {path}; give the path of a file.")
    match path.suffix:
        case ".parquet" | ".csv":
            found = _of_table(_table(path), path, kind)
        case ".json":
            if kind is not None:
                raise ConfigError(f"A kind ({kind!r}) chooses a table's rows; {path.name} is JSON, drop it.")
            found = _of_json(path, charging=charging)
        case ".pkl" | ".pickle" | "":
            raise ConfigError(
                f"{path} looks like a pickle, which runs code when it is loaded, so fedray loads none; where "
                "you trust it, write it as JSON: json.dump(pickle.load(open(OLD, 'rb')), open(NEW, 'w'))."
            )
        case _:
            raise ConfigError(f"An availability trace is .parquet, .csv or .json; found {path.name!r}.")
    return found.sessions(path, period_seconds)


def rows_of_trace(seed: int, num_rows: int, everybody: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of a trace's rows each client takes, [clients]; traces of one length are taken alike."""
    order = generator(seed, "availability").permutation(num_rows)
    rows: NDArray[np.int64] = order[everybody % num_rows]
    return rows


@dataclass(slots=True, kw_only=True)
class _Intervals:
    """What a file says, column by column; periods are nan where it says none."""

    rows: list[int] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)

    def add(self, spans: Iterator[tuple[float, float]], period: float = np.nan) -> None:
        """One more client."""
        for start, end in spans:
            self.rows.append(len(self.periods))
            self.starts.append(start)
            self.ends.append(end)
        self.periods.append(period)

    def sessions(self, path: Path, period_seconds: float | None) -> Sessions:
        """Of all clients. Raises ConfigError in the file's name."""
        if not self.periods or not self.rows:
            raise ConfigError(f"{path} has nobody online; give intervals.")
        ends, periods = np.array(self.ends, np.float64), np.array(self.periods, np.float64)
        latest = np.ceil(ends.max(initial=1.0) / 3600) * 3600
        own = np.where(np.isnan(periods), latest, periods)
        given = own if period_seconds is None else np.full(len(periods), period_seconds)
        try:
            return Sessions.of(np.array(self.rows, np.int64), np.array(self.starts, np.float64), ends, given)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _table(path: Path) -> pa.Table:
    try:
        return pa.parquet.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"The trace {path} cannot be read: {' '.join(str(error).split())}") from error


def _of_table(table: pa.Table, path: Path, kind: str | None) -> _Intervals:
    if {"active_s", "inactive_s"} <= set(table.column_names):
        found = _Intervals()
        for row in table.to_pylist():
            found.add(_pairs(row["active_s"], row["inactive_s"], path), _number(row, "trace_length_s"))
        return found
    client, start, end = (_column(table, names, path) for names in _NAMES.values())
    # Who is online in none of the intervals of this kind is a client all the same, and so is whoever a file
    # counts without giving an interval.
    ids, rows = np.unique(client.astype(np.int64), return_inverse=True)
    total = int((table.schema.metadata or {}).get(b"clients_total", len(ids)))
    of_kind = _of_kind(table, path, kind)
    return _Intervals(
        rows=rows[of_kind].tolist(),
        starts=start[of_kind].tolist(),
        ends=end[of_kind].tolist(),
        periods=[np.nan] * max(total, len(ids)),
    )


def _of_kind(table: pa.Table, path: Path, kind: str | None) -> Any:
    """Which intervals are of one kind, [rows], where a column of words tells several apart."""
    words = next(
        (
            table.column(schema_field.name).cast(pa.string())
            for schema_field in table.schema
            if pa.types.is_dictionary(schema_field.type) or pa.types.is_string(schema_field.type)
        ),
        None,
    )
    known = [] if words is None else sorted(set(words.to_pylist()), key=str)
    if kind is None and len(known) < 2:
        return np.ones(table.num_rows, np.bool_)
    if words is None or kind not in known:
        has = f"the kinds {', '.join(map(str, known))}" if known else "no kinds"
        asked = "none is asked for" if kind is None else f"{kind!r} is asked for"
        raise ConfigError(f"The trace {path} has {has}, and {asked}; set availability.kind so.")
    return pc.equal(words, kind).to_numpy(zero_copy_only=False)


def _column(table: pa.Table, names: tuple[str, ...], path: Path) -> Any:
    name = next((name for name in names if name in table.column_names), None)
    if name is None:
        raise ConfigError(
            f"The trace {path} lacks the column {names[0]!r}; it has {', '.join(table.column_names)}."
        )
    try:
        return table.column(name).cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise ConfigError(
            f"The trace {path}: {name} must hold numbers, found {table.column(name).type}."
        ) from error


def _of_json(path: Path, *, charging: bool) -> _Intervals:
    try:
        clients = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The trace {path} cannot be read as JSON: {error}.") from error
    if not isinstance(clients, Mapping):
        raise ConfigError(f"The trace {path} is no object by client, found a {type(clients).__name__}.")
    found = _Intervals()
    for client, entry in clients.items():
        try:
            _add(found, entry, path, charging=charging)
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"The trace {path}: client {client!r} has none of the known forms ({error}); give [[start, "
                "end], ...], active and inactive, ready_time, or messages."
            ) from error
    return found


def _add(found: _Intervals, entry: Any, path: Path, *, charging: bool) -> None:
    match entry:
        case list():
            found.add((float(start), float(end)) for start, end in entry)
        case {"active": active, "inactive": inactive}:
            found.add(_pairs(active, inactive, path), _number(entry, "finish_time"))
        case {"ready_time": ready, "trace_start": first, "trace_end": last}:
            start = float(first or 0)
            spans = ((float(a) - start, float(b) - start) for a, b in ready)
            found.add(spans, float(last) - start if last else np.nan)
        case {"messages": str() as messages}:
            found.add(*_flash_messages(messages, charging=charging))
        case _:
            raise ValueError(f"found {type(entry).__name__}")


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    return np.nan if value is None else float(value)


def _pairs(active: Any, inactive: Any, path: Path) -> Iterator[tuple[float, float]]:
    if len(active) != len(inactive):
        raise ConfigError(
            f"The trace {path}: a client becomes active {len(active)} times and inactive {len(inactive)} "
            "times; the lists must be of one length."
        )
    return zip(map(float, active), map(float, inactive), strict=True)


def _set_phone(phone: dict[str, bool], state: str) -> None:
    known: Mapping[str, tuple[str, bool]] = {
        "battery_charged_on": ("charging", True),
        "battery_charged_off": ("charging", False),
        "wifi": ("wifi", True),
        "screen_lock": ("locked", True),
        "screen_unlock": ("locked", False),
    } | {name: ("wifi", False) for name in ("unknown", "2g", "3g", "4g", "5g")}
    if state in known:
        what, value = known[state]
        phone[what] = value


def _moment(text: str) -> float:
    return (datetime.strptime(text.strip(), _FLASH_FORMAT) - _FLASH_ZERO).total_seconds()


def _flash_messages(messages: str, *, charging: bool) -> tuple[Iterator[tuple[float, float]], float]:
    """Intervals and length of one phone's log, from its first line on; of charging alone if asked."""
    phone = {"charging": False, "wifi": False, "locked": False}
    lines = [line.split("\t") for line in messages.splitlines() if line.strip()]
    first, last = _moment(lines[0][0]), _moment(lines[-1][0])
    spans, since = [], None
    for when, state in lines:
        _set_phone(phone, state.strip().lower())
        ready = phone["charging"] if charging else all(phone.values())
        if ready and since is None:
            since = _moment(when) - first
        elif not ready and since is not None:
            spans.append((since, _moment(when) - first))
            since = None
    return iter(spans), max(last - first, 1.0)
