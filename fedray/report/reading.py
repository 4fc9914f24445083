"""What a run left in its folder, read back into records."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fedray.errors import ConfigError
from fedray.record import ClassRecord, ClientRecord, DeviceRecord, EvaluationRecord, RoundRecord

_Kind = TypeVar("_Kind", ClientRecord, RoundRecord, EvaluationRecord, ClassRecord, DeviceRecord)
_AGAIN = "resume the run or run it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The records of one run, rounds in order, and what it was asked to do.

    Attributes:
        config: ``config.yaml`` parsed, and ``config_text`` as it stands there.
        classes: what device classes can hold; nothing of a run that is not done, or of a simulation.
        devices: of the fleet; nothing where a yardstick trained.
        environment: ``environment.json``, whatever the run found worth noting.
    """

    folder: Path
    rounds: Sequence[RoundRecord]
    clients: Sequence[ClientRecord]
    evaluations: Sequence[EvaluationRecord]
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    classes: Sequence[ClassRecord] = ()
    devices: Sequence[DeviceRecord] = ()


def read_run(folder: Path) -> Run:
    """Everything a report needs. Raises ConfigError if a file is missing, half-written or empty of rounds."""
    if not folder.is_dir():
        raise ConfigError(f"A report reads the folder of a run, and {folder} is none; give what --out named.")
    rounds = _records(folder / "rounds.parquet", RoundRecord)
    if not rounds:
        raise ConfigError(
            f"{folder / 'rounds.parquet'} holds no round: the run ended before its first was done; resume it."
        )
    config_text = _text(folder / "config.yaml")
    return Run(
        folder=folder,
        rounds=sorted(rounds, key=lambda record: record.round),
        clients=_records(folder / "clients.parquet", ClientRecord),
        evaluations=_records(folder / "evaluations.parquet", EvaluationRecord),
        config=_yaml(folder / "config.yaml", config_text),
        config_text=config_text,
        environment=_json(folder / "environment.json"),
        classes=_records(folder / "classes.parquet", ClassRecord, optional=True),
        devices=_records(folder / "devices.parquet", DeviceRecord, optional=True),
    )


def _records(path: Path, kind: type[_Kind], *, optional: bool = False) -> list[_Kind]:
    if optional and not path.exists():
        return []
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ConfigError(_missing(path)) from error
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no whole Parquet file ({_line(error)}); {_AGAIN}.") from error
    names = [field.name for field in dataclasses.fields(kind)]
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise ConfigError(
            f"{path} lacks the column {', '.join(absent)}: another version of fedray wrote it; {_AGAIN}."
        )
    return [kind(**row) for row in table.select(names).to_pylist()]


def _missing(path: Path) -> str:
    return f"{path} is missing, and a report needs it: the folder holds no finished run; {_AGAIN}."


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(_missing(path)) from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as text ({_line(error)}); {_AGAIN}.") from error


def _yaml(path: Path, text: str) -> Mapping[str, Any]:
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no whole YAML file ({_line(error)}); {_AGAIN}.") from error
    return _mapping(path, parsed)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        parsed = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no whole JSON file ({_line(error)}); {_AGAIN}.") from error
    return _mapping(path, parsed)


def _mapping(path: Path, parsed: object) -> Mapping[str, Any]:
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path} holds {type(parsed).__name__} where keys and values belong; {_AGAIN}.")
    return parsed
