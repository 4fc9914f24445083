"""The Python interface: what the command line does, for notebooks and scripts.

Everything heavy is imported when it is called, so ``import fedray`` and ``fedray --help`` are quick.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.config import Config, load_config
from fedray.errors import ConfigError

if TYPE_CHECKING:
    from fedray.doctor import Examination
    from fedray.engine import RunResult
    from fedray.planning import Plan
    from fedray.record import RoundRecord

Source = str | Path | Mapping[str, Any] | Config
Show = Callable[["RoundRecord"], None]


def run(
    config: Source, *, out: str | Path, overrides: Sequence[str] = (), show: Show | None = None
) -> "RunResult":
    """Train, and leave everything measured in a folder.

    Args:
        config: a YAML file, the same as a mapping, or a `Config`.
        out: the folder to leave it in; it must not exist, or be empty.
        overrides: ``["training.learning_rate=1e-3"]``: dotted keys and values in YAML.
        show: called with each round's record when the round is done, such as ``print``.

    Raises:
        FedrayError: one clear sentence, before anything is written where that is possible.
    """
    checked = load_config(config, overrides)
    folder = _fresh(Path(out))
    from fedray import engine

    return engine.run(checked, folder, show)


def plan(config: Source, *, overrides: Sequence[str] = ()) -> "Plan":
    """Price the fleet and ask the policy, without training. Arguments and errors as in `run`."""
    checked = load_config(config, overrides)
    from fedray import planning

    return planning.plan(checked)


def resume(out: str | Path, *, show: Show | None = None) -> "RunResult":
    """Continue an interrupted run from its last finished round; ``show`` as in `run`. Raises FedrayError."""
    folder = _existing(Path(out))
    from fedray import engine

    return engine.resume(folder, show)


def write_report(out: str | Path) -> Path:
    """Write ``report.html`` of a run, finished or not, and return its path. Raises FedrayError."""
    folder = _existing(Path(out))
    from fedray import report

    return report.write_report(folder)


def examine(*, folder: str | Path | None = None, save: str | Path | None = None) -> "Examination":
    """Measure this machine's rates and memory, and look for what is missing.

    Args:
        folder: where runs would be written, for its free disk; the current one if absent.
        save: a file to keep what was found in, as JSON.

    Raises:
        FedrayError: the folder does not exist, or the file cannot be written.
    """
    from fedray import doctor

    return doctor.examine(
        folder=None if folder is None else Path(folder), save=None if save is None else Path(save)
    )


def _fresh(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give the name of a new folder for the run.")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty; name a new folder, or continue the run in it with: fedray resume {out}"
        )
    return out


def _existing(out: Path) -> Path:
    if not (out / "config.yaml").is_file():
        raise ConfigError(f"{out} holds no run (no config.yaml); give a folder that fedray run wrote.")
    return out
