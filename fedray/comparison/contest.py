"""A comparison's records: a row per number of every run, and what they say of one policy beside another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import bootstrap

from fedray.comparison.entrants import Trial, said
from fedray.comparison.measures import COSTS, Measure, Trajectory, measures_of, trajectory_of
from fedray.report.reading import Run

# Below this many seeds an interval would say more of the method than of the policies.
FEWEST_SEEDS = 3
# A target that most should reach: this share of what the best policy ends with.
TARGET_SHARE = 0.95
# What is said of a yardstick: it plays by other rules, so it is in no budget and meets none.
OF_YARDSTICKS = frozenset(
    {"accuracy", "total", "accuracy of class", "accuracy of worst tenth", "accuracy of unseen", "peak memory"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of one run, with everything that says which run: a row of ``comparison.parquet``."""

    policy: str
    beside: bool
    setting: str
    tuned: str
    seed: int
    measure: str
    group: str
    unit: str
    value: float | None
    censored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One policy less another, seed by seed.

    Attributes:
        mean: over the seeds in which both have the number and neither is censored; None if there is none.
        low, high: 95 % bootstrap interval of the mean; None with fewer than three seeds.
        seeds: how many of them.
    """

    mean: float | None
    low: float | None
    high: float | None
    seeds: int


# Without slots, which a cached property has no place beside.
@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial and what it left."""

    trial: Trial
    run: Run

    @cached_property
    def trajectory(self) -> Trajectory:
        """Of the run; worked out once."""
        return trajectory_of(self.run)


def targets_of(runs: Sequence[Finished], target: float | None) -> dict[str, float]:
    """By setting, the accuracy whose cost is asked for: as given, or 95 % of the best policy's median."""
    found = {}
    for setting, here in by_setting(runs).items():
        finals: dict[str, list[float]] = {}
        for one in here:
            final = None if one.trial.entrant.yardstick else one.trajectory.final
            if final is not None:
                finals.setdefault(one.trial.entrant.label, []).append(final)
        best = max((median(values) for values in finals.values()), default=0.0)
        found[setting] = TARGET_SHARE * best if target is None else target
    return found


def rows_of(runs: Sequence[Finished], targets: Mapping[str, float]) -> list[Row]:
    """Every number of every run.

    What everybody may spend, by cost, is the least that any of the runs of a setting and a seed spent in all:
    then every run can be asked what it had come to by then.
    """
    found = []
    for setting, here in by_setting(runs).items():
        for seed in sorted({one.trial.seed for one in here}):
            found += _of_one_seed([one for one in here if one.trial.seed == seed], targets[setting])
    return found


def by_setting(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Runs that can be compared, in the order in which settings first appear."""
    found: dict[str, list[Finished]] = {}
    for one in runs:
        found.setdefault(said(one.trial.setting), []).append(one)
    return found


def difference(rows: Sequence[Row], policy: str, other: str, measure: str, group: str = "") -> Difference:
    """``policy`` less ``other`` on one measure, paired by seed; rows of one setting."""

    def by_seed(label: str) -> dict[int, float]:
        wanted = (label, measure, group)
        return {
            row.seed: row.value
            for row in rows
            if (row.policy, row.measure, row.group) == wanted and row.value is not None and not row.censored
        }

    mine, theirs = by_seed(policy), by_seed(other)
    pairs = np.array([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])
    if not len(pairs):
        return Difference(mean=None, low=None, high=None, seeds=0)
    mean = float(pairs.mean())
    if len(pairs) < FEWEST_SEEDS:
        return Difference(mean=mean, low=None, high=None, seeds=len(pairs))
    if np.ptp(pairs) == 0:
        return Difference(mean=mean, low=mean, high=mean, seeds=len(pairs))
    # Percentiles: with a handful of seeds the correction of BCa rests on nothing.
    interval = bootstrap(
        (pairs,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    return Difference(mean=mean, low=float(interval.low), high=float(interval.high), seeds=len(pairs))


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Tidy: a number a row."""
    kinds: Mapping[Any, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64()}
    fields = [pa.field(n, kinds.get(kind, pa.float64())) for n, kind in Row.__annotations__.items()]
    columns = [{name: getattr(row, name) for name in Row.__slots__} for row in rows]
    return pa.Table.from_pylist(columns, schema=pa.schema(fields))


def _of_one_seed(here: Sequence[Finished], target: float) -> list[Row]:
    contestants = [one for one in here if one.trial.entrant.yardstick is None]
    budgets = {cost: min((one.trajectory.totals[cost] for one in contestants), default=0.0) for cost in COSTS}
    clients = sorted({record.client_id for one in contestants for record in one.run.clients})
    return [
        _row(one.trial, measure)
        for one in here
        for measure in measures_of(one.run, one.trajectory, budgets=budgets, target=target, clients=clients)
        if one.trial.entrant.yardstick is None or measure.name in OF_YARDSTICKS
    ]


def _row(trial: Trial, measure: Measure) -> Row:
    return Row(
        policy=trial.entrant.label,
        beside=trial.entrant.beside,
        setting=said(trial.setting),
        tuned=said(trial.tuned),
        seed=trial.seed,
        measure=measure.name,
        group=measure.group,
        unit=measure.unit,
        value=measure.value,
        censored=measure.censored,
    )
