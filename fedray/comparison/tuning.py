"""Tuning: equal trials for every policy, chosen on validation rows, its cost told."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from fedray.comparison.contest import Finished
from fedray.comparison.entrants import Entrant, Settings, Trial, said
from fedray.comparison.runs import wall_seconds
from fedray.report.reading import Run
from fedray.report.tallies import curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial of tuning: a row of ``tuning.parquet``. Costs are the run's totals."""

    policy: str
    setting: str
    tuned: str
    seed: int
    validation_accuracy: float
    chosen: bool
    virtual_seconds: float
    moved_bytes: float
    joules: float
    wall_seconds: float


def trials_to_tune(
    entrants: Sequence[Entrant], settings: Sequence[Settings], tunes: Sequence[Settings], seed: int
) -> list[Trial]:
    """As many for every policy and setting; with a seed that no compared run has."""
    if len(tunes) < 2:
        return []
    return [
        Trial(entrant=entrant, setting=setting, seed=seed, tuned=tuned)
        for entrant in entrants
        for setting in settings
        for tuned in tunes
    ]


def chosen_of(runs: Sequence[Finished]) -> dict[tuple[str, str], Settings]:
    """By policy and setting, the values with the best validation accuracy; of equals the first tried."""
    best: dict[tuple[str, str], tuple[float, Settings]] = {}
    for one in runs:
        key, accuracy = (one.trial.entrant.label, said(one.trial.setting)), validation_accuracy(one.run)
        if key not in best or accuracy > best[key][0]:
            best[key] = accuracy, one.trial.tuned
    return {key: tuned for key, (_, tuned) in best.items()}


def validation_accuracy(run: Run) -> float:
    """After the last evaluation."""
    return next(curve.accuracy[-1] for curve in curves(run) if curve.split == "validation")


def tried_of(runs: Sequence[Finished]) -> list[Tried]:
    """What tuning came to and cost."""
    chosen, found = chosen_of(runs), []
    for one in runs:
        trial, totals = one.trial, one.trajectory.totals
        key = trial.entrant.label, said(trial.setting)
        found.append(
            Tried(
                policy=key[0],
                setting=key[1],
                tuned=said(trial.tuned),
                seed=trial.seed,
                validation_accuracy=validation_accuracy(one.run),
                chosen=chosen[key] == trial.tuned,
                virtual_seconds=totals["virtual time"],
                moved_bytes=totals["bytes"],
                joules=totals["energy"],
                wall_seconds=wall_seconds(one.run),
            )
        )
    return found


def tuning_table(tried: Sequence[Tried]) -> pa.Table:
    """A trial a row."""
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in Tried.__annotations__.items()])
    return pa.Table.from_pylist(
        [{name: getattr(one, name) for name in Tried.__slots__} for one in tried], schema=schema
    )
