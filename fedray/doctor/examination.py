"""The whole examination: one frozen value, and the order in which it is taken."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedray.doctor.machine import Machine, look_around
from fedray.doctor.packages import (
    PYTHON_MINIMUM,
    Package,
    core_packages,
    extra_packages,
    python_version,
    trackers,
)
from fedray.doctor.resident import Resident, measure_resident
from fedray.errors import ConfigError

if TYPE_CHECKING:
    from fedray.doctor.rates import DeviceRates


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found.

    Attributes:
        python: the interpreter's version.
        core: distributions fedray always needs; ``extras`` those one part of it needs.
        trackers: installed ones that ``report_to`` may name, with their versions.
        devices: with their measured rates; none if torch is missing.
        resident: measured, or a sentence that says why not.
    """

    python: str
    core: tuple[Package, ...]
    extras: tuple[Package, ...]
    trackers: dict[str, str]
    machine: Machine
    devices: "tuple[DeviceRates, ...]"
    resident: Resident | str

    @property
    def missing(self) -> tuple[str, ...]:
        """What the core needs and does not have, each in a few words; empty if fedray can run."""
        least = ".".join(map(str, PYTHON_MINIMUM))
        old = tuple(map(int, self.python.split(".")[:2])) < PYTHON_MINIMUM
        return (
            *([f"Python {least} or newer (this is {self.python})"] if old else []),
            *(
                f"{p.name} {p.minimum} or newer ({f'found {p.found}' if p.found else 'not installed'})"
                for p in self.core
                if not p.fine
            ),
        )

    def to_json(self) -> str:
        """Everything, with ``missing`` and the factors; keys carry their units."""
        found = asdict(self) | {"missing": list(self.missing)}
        if isinstance(self.resident, Resident):
            found["resident"] |= {
                "factor": self.resident.factor,
                "working_factor": self.resident.working_factor,
            }
        return json.dumps(found, indent=2)


def examine(*, folder: Path | None = None, save: Path | None = None) -> Examination:
    """Look, measure, and change nothing.

    Args:
        folder: where runs would be written; its free disk is looked up. The current one if absent.
        save: a file to write `Examination.to_json` to; nothing is written without it.

    Raises:
        ConfigError: the folder does not exist, or the file cannot be written.

    Takes some 15 s, most of them for importing torch and transformers in a second process.
    """
    place = (folder or Path.cwd()).absolute()
    if not place.is_dir():
        raise ConfigError(
            f"The free disk of {place} was asked for, and there is no such folder; name another."
        )
    if save is not None and not save.absolute().parent.is_dir():
        raise ConfigError(f"{save} cannot be written: there is no folder {save.parent}; make it first.")
    core, machine = core_packages(), look_around(place)
    runs = all(package.fine for package in core)
    found = Examination(
        python=python_version(),
        core=core,
        extras=extra_packages(),
        trackers=trackers(),
        machine=machine,
        devices=_devices(machine) if runs else (),
        resident=measure_resident()
        if runs
        else "A client alone cannot be trained while packages are missing.",
    )
    if save is not None:
        _write(save, found.to_json() + "\n")
    return found


def _devices(machine: Machine) -> "tuple[DeviceRates, ...]":
    # Imported late: where torch is missing, the doctor must be able to say so.
    from fedray.doctor.rates import measure_devices

    return measure_devices(machine.memory_bytes)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file.") from error
