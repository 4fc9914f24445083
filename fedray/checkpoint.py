"""Checkpoints and records on disk: complete or absent, whenever the process dies.

A checkpoint is a folder written under another name and renamed; the records beside it are replaced
whole. Records may be a round ahead of the newest checkpoint; what is ahead is dropped on reading.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.battery import Charges
from fedray.errors import ConfigError
from fedray.holdings import Holdings
from fedray.policy_state import freeze_state, thaw_state
from fedray.progress import Progress, Verdict
from fedray.record import (
    ClassRecord,
    ClientRecord,
    DeviceRecord,
    EvaluationRecord,
    Record,
    RoundRecord,
    table,
)
from fedray.training.job import ClientState
from fedray.underway import UnderWay
from fedray.whole_file import PART, replaced

FOLDER = "checkpoint"
RECORDS = {"rounds": RoundRecord, "clients": ClientRecord, "evaluations": EvaluationRecord}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    state: str = "state.safetensors"
    older: str = "version-{}.safetensors"
    clients: str = "clients.safetensors"
    holdings: str = "holdings.npz"
    charges: str = "charges.npz"
    policy: str = "policy.npz"
    facts: str = "facts.json"


_NAMES = _Names()


def save(out: Path, progress: Progress) -> None:
    """Records first, then the checkpoint; an older checkpoint goes once the new one stands.

    Raises:
        ConfigError: the disk is full or refuses; what was written before stays whole.
    """
    try:
        _save(out, progress)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        kept = f", then go on with: fedray resume {out}" if exists(out) else "."
        raise ConfigError(
            f"Round {progress.finished_rounds} could not be written to {out} ({_one_line(error)}), and "
            f"nothing half-written of it stays; free some space{kept}"
        ) from error


def exists(out: Path) -> bool:
    """Whether a run left a whole checkpoint here."""
    return bool(_complete(out / FOLDER))


def _save(out: Path, progress: Progress) -> None:
    write_records(out, progress.rounds, progress.clients, progress.evaluations)
    folder = out / FOLDER
    final = folder / f"round-{progress.finished_rounds:06d}"
    part = final.with_name(final.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(part, progress)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for older in _complete(folder)[:-1]:
        shutil.rmtree(older)


def load(out: Path) -> Progress | None:
    """The newest complete checkpoint with its records; None if the run finished no round.

    Raises:
        ConfigError: a file of the checkpoint is torn or missing.
    """
    found = _complete(out / FOLDER)
    if not found:
        return None
    try:
        return _read(out, found[-1])
    except (OSError, ValueError, KeyError, pa.ArrowException, SafetensorError, BadZipFile) as error:
        raise ConfigError(
            f"The checkpoint {found[-1]} cannot be read ({_one_line(error)}); start the run again in a new "
            "folder."
        ) from error


def write_records(
    out: Path,
    rounds: Sequence[RoundRecord],
    clients: Sequence[ClientRecord],
    evaluations: Sequence[EvaluationRecord],
) -> None:
    """The three tables of a run, each whole or as it was."""
    kept: tuple[Sequence[Record], ...] = (rounds, clients, evaluations)
    for (name, kind), records in zip(RECORDS.items(), kept, strict=True):
        _write_table(out / f"{name}.parquet", records, kind)


def write_classes(out: Path, classes: Sequence[ClassRecord]) -> None:
    """What a run leaves of its device classes when all its rounds are done."""
    _write_table(out / "classes.parquet", classes, ClassRecord)


def write_devices(out: Path, devices: Sequence[DeviceRecord]) -> None:
    """What a run or a simulation leaves of its fleet before the first round."""
    _write_table(out / "devices.parquet", devices, DeviceRecord)


def _write_table(file: Path, records: Sequence[Record], kind: type[Record]) -> None:
    with replaced(file) as part:
        pq.write_table(table(records, kind), part)


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.suffix != PART)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _write(part: Path, progress: Progress) -> None:
    state = progress.state
    save_file(_flat(state), part / _NAMES.state)
    save_file(_flat_states(progress.client_states), part / _NAMES.clients)
    _save_arrays(part / _NAMES.holdings, progress.holdings.to_arrays())
    _save_arrays(part / _NAMES.charges, progress.charges.to_arrays())
    policy, arrays = freeze_state(progress.policy_state)
    # Names of a policy's arrays are places in its state, not names that a zip file takes.
    _save_arrays(part / _NAMES.policy, {str(i): array for i, array in enumerate(arrays.values())})
    way = progress.under_way
    for version, older in way.versions.items():
        save_file(_flat(older), part / _NAMES.older.format(version))
    facts = _facts_of(state) | {
        "under_way": way.facts(),
        "older": [_facts_of(older) for older in way.versions.values()],
        "client_states": {client: list(kept) for client, kept in progress.client_states.items()},
        "policy": policy,
        "policy_arrays": list(arrays),
        "audited": {work: asdict(verdict) for work, verdict in progress.audited.items()},
        "finished_rounds": progress.finished_rounds,
    }
    (part / _NAMES.facts).write_text(json.dumps(facts))


def _facts_of(state: GlobalState) -> dict[str, Any]:
    """What a file of its tensors does not say."""
    return {
        "version": state.version,
        # A file of tensors is sorted by name; sums over clients' tensors run in the state's own order.
        "head": list(state.adapter.head),
        "weights": list(state.adapter.weights),
        "scales": {
            "adapter": {site: f.scale for site, f in state.adapter.factors.items()},
            "base_delta": {site: f.scale for site, f in state.base_delta.items()},
        },
        "frozen_a": list(state.adapter.frozen()),
        "moments": list(state.moments),
    }


def _state_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> GlobalState:
    scales = facts["scales"]
    return GlobalState(
        adapter=Adapter(
            factors=_trained(tensors, scales["adapter"], facts["frozen_a"]),
            head={name: tensors[f"head/{name}"] for name in facts["head"]},
            weights={name: tensors[f"weights/{name}"] for name in facts["weights"]},
        ),
        base_delta=_factors(tensors, "base_delta", scales["base_delta"]),
        moments={name: tensors[f"moments/{name}"] for name in facts["moments"]},
        version=facts["version"],
    )


def _save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    # Opened here, for numpy leaves a file that is torn open.
    with path.open("rb") as file, np.load(file) as kept:
        return dict(kept)


def _read(out: Path, folder: Path) -> Progress:
    facts: dict[str, Any] = json.loads((folder / _NAMES.facts).read_text())
    kept = _arrays(folder / _NAMES.policy)
    arrays = {name: kept[str(i)] for i, name in enumerate(facts["policy_arrays"])}
    holdings = Holdings.from_arrays(_arrays(folder / _NAMES.holdings))
    states = load_file(folder / _NAMES.clients)
    older = {
        said["version"]: _state_of(load_file(folder / _NAMES.older.format(said["version"])), said)
        for said in facts["older"]
    }
    records = {
        name: _records(out / f"{name}.parquet", kind, facts["finished_rounds"])
        for name, kind in RECORDS.items()
    }
    return Progress(
        state=_state_of(load_file(folder / _NAMES.state), facts),
        under_way=UnderWay.from_facts(facts["under_way"], older),
        holdings=holdings,
        charges=Charges.from_arrays(_arrays(folder / _NAMES.charges)),
        policy_state=thaw_state(facts["policy"], arrays),
        audited={work: Verdict(**verdict) for work, verdict in facts["audited"].items()},
        client_states={
            int(client): {name: states[f"{client}/{name}"] for name in names}
            for client, names in facts["client_states"].items()
        },
        rounds=records["rounds"],
        clients=records["clients"],
        evaluations=records["evaluations"],
    )


def _records(path: Path, kind: type, finished_rounds: int) -> list[Any]:
    return [kind(**row) for row in pq.read_table(path).to_pylist() if row["round"] <= finished_rounds]


def _flat(state: GlobalState) -> dict[str, Tensor]:
    flat = {f"head/{name}": tensor.contiguous() for name, tensor in state.adapter.head.items()}
    flat |= {f"weights/{name}": tensor.contiguous() for name, tensor in state.adapter.weights.items()}
    flat |= {f"moments/{name}": tensor.contiguous() for name, tensor in state.moments.items()}
    for part, factors in (("adapter", state.adapter.factors), ("base_delta", state.base_delta)):
        for site, f in factors.items():
            flat[f"{part}/{site}/a"], flat[f"{part}/{site}/b"] = f.a.contiguous(), f.b.contiguous()
    return flat


def _trained(
    tensors: Mapping[str, Tensor], scales: Mapping[str, float], frozen_a: Sequence[str]
) -> dict[str, Factors]:
    found = _factors(tensors, "adapter", scales)
    return {site: replace(f, train_a=site not in frozen_a) for site, f in found.items()}


def _flat_states(states: Mapping[int, ClientState]) -> dict[str, Tensor]:
    return {
        f"{client}/{name}": tensor.contiguous()
        for client, kept in states.items()
        for name, tensor in kept.items()
    }


def _factors(tensors: Mapping[str, Tensor], part: str, scales: Mapping[str, float]) -> dict[str, Factors]:
    return {
        site: Factors(a=tensors[f"{part}/{site}/a"], b=tensors[f"{part}/{site}/b"], scale=scale)
        for site, scale in scales.items()
    }
