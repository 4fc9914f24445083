"""The runs of a comparison, one after the other; what is done already is read, what is half done goes on."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedray import engine
from fedray.comparison.contest import Finished
from fedray.comparison.entrants import Trial, Yardstick
from fedray.comparison.yardsticks import play_yardstick
from fedray.config import Config, load_config
from fedray.config.loading import config_to_yaml
from fedray.errors import ConfigError
from fedray.report.reading import Run, read_run
from fedray.watched import Watch


class ShowTrial(Protocol):
    """Called with each run that is done: how many are, of how many, and the run."""

    def __call__(self, done: int, total: int, trial: Trial, run: Run) -> None:
        """Says so."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a comparison calls while it goes on."""

    trial: ShowTrial | None = None
    watch: Watch | None = None


def configured(config: Config, trials: Sequence[Trial]) -> list[Config]:
    """Each trial's own configuration, all checked before the first runs. Raises ConfigError."""
    return [load_config(config, trial.overrides) for trial in trials]


def played(
    config: Config, trials: Sequence[Trial], out: Path, shown: Shown, already: int, total: int
) -> list[Finished]:
    """Every trial's records, in order.

    Args:
        config: what they have in common.
        trials: the runs.
        out: the comparison's folder.
        shown: what is called meanwhile.
        already: runs done before these.
        total: runs of the whole comparison.

    Raises:
        FedrayError: a run fails, or a folder holds another run.
    """
    found = []
    for position, (trial, own) in enumerate(zip(trials, configured(config, trials), strict=True)):
        run = _played(own, trial, trial.place(out), shown.watch)
        found.append(Finished(trial=trial, run=run))
        if shown.trial is not None:
            shown.trial(already + position + 1, total, trial, run)
    return found


def _played(config: Config, trial: Trial, folder: Path, watch: Watch | None) -> Run:
    if trial.entrant.yardstick is not None:
        return _measured(trial.entrant.yardstick, config, folder)
    if not (folder / "config.yaml").exists():
        engine.run(config, folder, watch=watch)
        return read_run(folder)
    _refuse_another(config, folder)
    if not _ended(config, folder, "adapter"):
        engine.resume(folder, watch=watch)
    return read_run(folder)


def _measured(kind: Yardstick, config: Config, folder: Path) -> Run:
    """A yardstick's, made anew where it is not whole."""
    if (folder / "config.yaml").exists():
        _refuse_another(config, folder)
    if not _ended(config, folder, "evaluations.parquet"):
        shutil.rmtree(folder, ignore_errors=True)
        play_yardstick(kind, config, folder)
    return read_run(folder)


def _ended(config: Config, folder: Path, last: str) -> bool:
    """By its report, which is written after all else; without one, by what is written last then."""
    return (folder / ("report.html" if config.report else last)).exists()


def _refuse_another(config: Config, folder: Path) -> None:
    if (folder / "config.yaml").read_text(encoding="utf-8") != config_to_yaml(config):
        raise ConfigError(
            f"{folder} holds a run of another configuration; give the comparison a new folder, or the "
            "configuration that it was begun with."
        )


def wall_seconds(run: Run) -> float:
    """What all its rounds took on this machine."""
    return sum(record.wall_seconds for record in run.rounds)
