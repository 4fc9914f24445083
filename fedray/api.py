"""The Python interface: what the command line does, for notebooks and scripts.

Everything heavy is imported when it is called, so ``import fedray`` and ``fedray --help`` are quick.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedray.config import Config, load_config
from fedray.config.kinds import Named
from fedray.errors import ConfigError
from fedray.policy_loading import name_in_python

if TYPE_CHECKING:
    from fedray.comparison import Comparison
    from fedray.comparison.runs import ShowTrial
    from fedray.doctor import Examination
    from fedray.engine import RunResult
    from fedray.planning import Plan
    from fedray.record import RoundRecord
    from fedray.simulation import Simulation
    from fedray.submodel import Exported
    from fedray.testing import Report
    from fedray.training.tap import Tap
    from fedray.watched import Watch

Source = str | Path | Mapping[str, Any] | Config
Show = Callable[["RoundRecord"], None]


def run(
    config: Source,
    *,
    out: str | Path,
    overrides: Sequence[str] = (),
    policy: object | None = None,
    show: Show | None = None,
    watch: "Watch | None" = None,
    taps: "Sequence[Tap]" = (),
) -> "RunResult":
    """Train, and leave everything measured in a folder.

    Args:
        config: a YAML file, the same as a mapping, or a `Config`.
        out: the folder to leave it in; it must not exist, or be empty.
        overrides: ``["training.learning_rate=1e-3"]``: dotted keys and values in YAML.
        policy: a function ``assign(cohort, offers)``, a class or an object in place of the policy that the
            configuration names, with its options. The run's config.yaml then has its name alone, and only
            `resume` with the same ``policy`` can go on with it.
        show: called with each round's record when the round is done, such as ``print``.
        watch: called inside rounds, with the round, what is being done (``audits``, ``training``,
            ``evaluation``), how many clients (rows, when evaluating) are done, and of how many.
        taps: look on at every update and at all that crosses cuts, and change nothing; see
            `fedray.training.tap.Tap`.

    Raises:
        FedrayError: one clear sentence, before anything is written where that is possible.
    """
    checked = _with_policy(load_config(config, overrides), policy)
    folder = _fresh(Path(out))
    from fedray import engine

    return engine.run(checked, folder, show, policy, watch, taps)


def plan(config: Source, *, overrides: Sequence[str] = (), policy: object | None = None) -> "Plan":
    """Price the fleet and ask the policy, without training. Arguments and errors as in `run`."""
    checked = _with_policy(load_config(config, overrides), policy)
    from fedray import planning

    return planning.plan(checked, policy)


def resume(
    out: str | Path,
    *,
    policy: object | None = None,
    show: Show | None = None,
    watch: "Watch | None" = None,
    taps: "Sequence[Tap]" = (),
) -> "RunResult":
    """Continue an interrupted run from its last finished round.

    Args:
        out: the folder of the run.
        policy: the one that the run was given in Python, and none otherwise.
        show: as in `run`.
        watch: as in `run`.
        taps: as in `run`.

    Raises:
        FedrayError: one clear sentence.
    """
    folder = _existing(Path(out))
    from fedray import engine

    return engine.resume(folder, show, policy, watch, taps)


def compare(
    config: Source,
    *,
    out: str | Path,
    policies: Sequence[str | Mapping[str, Any]],
    seeds: int | Sequence[int] = 5,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    select_on: Literal["validation"] = "validation",
    target: float | None = None,
    overrides: Sequence[str] = (),
    show: "ShowTrial | None" = None,
    watch: "Watch | None" = None,
) -> "Comparison":
    """Run policies on the same fleet, data and draws, and tell their differences seed by seed.

    ``drop_weak`` and ``everybody_smallest`` always stand beside those that are asked for, and where the menu
    has whole models two yardsticks: every client alone (``local_only``) and all rows on one device
    (``centralised``); see `fedray.comparison.yardsticks`. A comparison that was broken off goes on where it
    was: call it again with the same ``out``.

    Args:
        config: as in `run`, without its policy and seed.
        out: the folder for the runs, ``comparison.parquet`` (a number a row), ``tuning.parquet`` and
            ``comparison.html``.
        policies: names or paths of files, or mappings with ``name`` and ``options``; differences are from
            the first.
        seeds: how many, from 0, or which.
        grid: dotted keys with the values under which all are compared:
            ``{"data.partitioner.alpha": [0.1, 1.0]}``.
        tune: dotted keys with the values to choose from, for each policy alone: one run for every
            combination, with a seed that no compared run has.
        select_on: what tuning chooses on; validation rows are the only ones that are not reported on.
        target: an accuracy whose cost is asked for; 95 % of the best policy's median if absent. A run that
            does not reach it counts as censored.
        overrides: as in `run`.
        show: called with each finished run: ``show(done, total, trial, run)``.
        watch: as in `run`.

    Raises:
        FedrayError: one clear sentence, before the first run where that is possible.
    """
    if select_on != "validation":
        raise ConfigError(f"select_on is 'validation', found {select_on!r}: test rows must not choose.")
    checked = load_config(config, overrides)
    folder = Path(out)
    if folder.exists() and not (folder / "runs").is_dir():
        _fresh(folder)
    from fedray import comparison

    asked = comparison.Asked(policies=policies, seeds=seeds, grid=grid or {}, tune=tune or {}, target=target)
    return comparison.compare(checked, asked, folder, comparison.Shown(trial=show, watch=watch))


def simulate(
    config: Source,
    *,
    out: str | Path,
    overrides: Sequence[str] = (),
    policy: object | None = None,
    show: Show | None = None,
    replay: str | Path | None = None,
) -> "Simulation":
    """The same rounds without training, on as many devices as you like; system measures alone.

    Where a policy asks for losses, it is shown that all clients' are alike.

    Args:
        config: as in `run`; ``fleet.num_clients`` says how many devices there are.
        out: the folder to leave it in; it must not exist, or be empty.
        overrides: as in `run`.
        policy: as in `run`.
        show: called with each round's record, which has no accuracy.
        replay: the folder of a trained run; its losses and accuracies are taken, as long as every decision is
            the one that was recorded there.

    Raises:
        FedrayError: one clear sentence; a folder begun is taken away again.
    """
    checked = _with_policy(load_config(config, overrides), policy)
    folder = _fresh(Path(out))
    recorded = None if replay is None else _existing(Path(replay))
    from fedray import simulation

    return simulation.simulate(checked, folder, show, policy, recorded)


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


def export(run: str | Path, *, client: int, out: str | Path) -> "Exported":
    """Write one client's submodel of a run as a Hugging Face folder: fewer blocks, narrower, LoRA merged.

    Args:
        run: a folder that a run left, finished or not.
        client: its id; what it was last given counts.
        out: a new folder.

    Raises:
        FedrayError: there is no such client, or under a cut it has no model of its own.
    """
    from fedray import submodel

    return submodel.export(_existing(Path(run)), client, _fresh(Path(out)))


def check(target: str, *, options: Mapping[str, Any] | None = None, examples: int = 50) -> "list[Report]":
    """Try a policy or an aggregation rule on drawn fleets, menus and rounds, without training.

    Args:
        target: a shipped policy's name, an aggregation's, or the path of a Python file with either; a name
            that stands for both has two reports.
        options: of the policy or the rule.
        examples: cases drawn for each.

    Raises:
        FedrayError: there is no such thing, it cannot be loaded, or what draws the cases is not installed.
    """
    from fedray import testing

    return testing.check(target, options, examples=examples)


def _with_policy(config: Config, policy: object | None) -> Config:
    if policy is None:
        return config
    return config.model_copy(update={"policy": Named(name=name_in_python(policy))})


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
