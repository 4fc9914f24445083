"""Trackers: whatever accelerate knows by name (tensorboard, wandb, mlflow, ...), fed once a round."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fedray.config import Config
from fedray.errors import ConfigError
from fedray.record import RoundRecord


def refuse_absent_trackers(names: Sequence[str]) -> None:
    """Because accelerate itself passes over a tracker that is not installed. Raises ConfigError for one."""
    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = sorted(str(name) for name in get_available_trackers())
    here = ", ".join(installed) or "none"
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(
                f"report_to knows no tracker {name!r}; accelerate has {', '.join(known)} (installed: {here})."
            )
        if name not in (*installed, "all"):
            raise ConfigError(
                f"report_to asks for {name}, which is not installed here (installed: {here}); run: pip "
                f"install {name.replace('_', '-')}, or drop it."
            )


class Tracker:
    """Round records as a tracker's steps; without trackers it does nothing."""

    def __init__(self, accelerator: Accelerator, config: Config) -> None:
        """Args: accelerator: made with the trackers' names and the run's folder."""
        self._accelerator = accelerator
        self._active = bool(config.report_to)
        if self._active:
            accelerator.init_trackers("fedray", config=_flat(config.model_dump(mode="json")))

    def log(self, record: RoundRecord) -> None:
        """One round; what was not measured is left out."""
        if self._active:
            values = {name: value for name, value in asdict(record).items() if value is not None}
            self._accelerator.log(values, step=record.round)

    def close(self) -> None:
        """Let the trackers write what they hold back."""
        if self._active:
            self._accelerator.end_training()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested keys joined by dots; trackers take plain values only."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
