"""Policies beside each other on the same fleet, data and draws: `compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedray.comparison.contest import Difference, Finished, Row, difference, rows_of, table_of, targets_of
from fedray.comparison.entrants import (
    BESIDE,
    Entrant,
    Settings,
    Trial,
    entrants_of,
    said,
    seeds_of,
    settings_of,
)
from fedray.comparison.page import comparison_page, text_of
from fedray.comparison.runs import Shown, configured, played
from fedray.comparison.tuning import Tried, chosen_of, trials_to_tune, tried_of, tuning_table
from fedray.comparison.yardsticks import can_stand
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.whole_file import replaced

__all__ = ["BESIDE", "Asked", "Comparison", "Difference", "Row", "Shown", "Tried", "compare", "difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is compared; see `fedray.compare`."""

    policies: Sequence[str | Settings]
    seeds: int | Sequence[int]
    grid: Mapping[str, Sequence[Any]]
    tune: Mapping[str, Sequence[Any]]
    target: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison came to; every run lies in its own folder below.

    Attributes:
        rows: a number of a run each, as in ``comparison.parquet``.
        tried: the trials of tuning, as in ``tuning.parquet``.
        targets: by setting, the accuracy whose cost was asked for.
    """

    out: Path
    rows: tuple[Row, ...]
    tried: tuple[Tried, ...]
    targets: Mapping[str, float]
    report: Path

    def table(self) -> pa.Table:
        """`rows` as an Arrow table."""
        return table_of(self.rows)

    def to_text(self) -> str:
        """The table that the command line prints: a policy a line, medians over seeds."""
        return text_of(self.rows, self.targets)


def compare(config: Config, asked: Asked, out: Path, shown: Shown) -> Comparison:
    """Run what is not there yet, and leave table and report. Raises FedrayError; see `fedray.compare`."""
    everybody, seeds = entrants_of(asked.policies), seeds_of(asked.seeds)
    settings, tunes = settings_of(asked.grid, "grid"), settings_of(asked.tune, "tune")
    _refuse(config, asked, tunes)
    entrants = [entrant for entrant in everybody if entrant.yardstick is None or can_stand(config)]
    # Yardsticks are not tuned: their trials would be no policy's.
    contestants = [entrant for entrant in entrants if entrant.yardstick is None]
    tuning = trials_to_tune(contestants, settings, tunes, max(seeds) + 1)
    configured(config, [*tuning, *_trials(entrants, settings, seeds, {})])
    total = len(tuning) + len(entrants) * len(settings) * len(seeds)
    tuned = played(config, tuning, out, shown, 0, total)
    chosen = chosen_of(tuned) if tuning else {}
    trials = _trials(entrants, settings, seeds, chosen)
    return _written(
        played(config, trials, out, shown, len(tuning), total), tried_of(tuned), asked.target, out
    )


def _refuse(config: Config, asked: Asked, tunes: Sequence[Settings]) -> None:
    if asked.target is not None and not 0 < asked.target <= 1:
        raise ConfigError(f"target is an accuracy between 0 and 1, found {asked.target}.")
    if asked.tune and len(tunes) < 2:
        raise ConfigError("tune has one value for each key, and there is nothing to choose; use overrides.")
    if asked.tune and not config.data.validation_share:
        raise ConfigError(
            "tune chooses on validation rows and there are none; set data.validation_share, such as 0.1."
        )


def _trials(
    entrants: Sequence[Entrant],
    settings: Sequence[Settings],
    seeds: Sequence[int],
    chosen: Mapping[tuple[str, str], Settings],
) -> list[Trial]:
    # Seed by seed, so that what is there of a broken comparison is a comparison with fewer seeds.
    return [
        Trial(entrant=e, setting=s, seed=seed, tuned=chosen.get((e.label, said(s)), {}))
        for seed in seeds
        for s in settings
        for e in entrants
    ]


def _written(runs: Sequence[Finished], tried: Sequence[Tried], target: float | None, out: Path) -> Comparison:
    targets = targets_of(runs, target)
    rows = rows_of(runs, targets)
    with replaced(out / "comparison.parquet") as part:
        pq.write_table(table_of(rows), part)
    if tried:
        with replaced(out / "tuning.parquet") as part:
            pq.write_table(tuning_table(tried), part)
    report = out / "comparison.html"
    with replaced(report) as part:
        part.write_text(comparison_page(runs, rows, tried, targets), encoding="utf-8")
    return Comparison(out=out, rows=tuple(rows), tried=tuple(tried), targets=targets, report=report)
