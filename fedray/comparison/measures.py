"""What one run came to, in numbers to compare with another's: at equal cost, not at equal rounds."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedray.cost import Floats
from fedray.record import ClientRecord
from fedray.report.reading import Run
from fedray.report.tallies import curves, device_classes, mean_accuracy, spent, with_and_without_codecs

# By cost: its unit. A run's trajectory is measured along each. Energy is by the watts that profiles declare.
COSTS: Mapping[str, str] = {"virtual time": "s", "bytes": "B", "energy": "J, declared"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of one run.

    Attributes:
        group: what it is of: a cost, a device class, or nothing.
        value: None where the run cannot tell.
        censored: the truth is more than ``value``: a target that was not reached within the run's budget.
    """

    name: str
    group: str
    unit: str
    value: float | None
    censored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Accuracy along a run, [evaluations] each, costs summed from its start."""

    accuracy: Floats
    costs: Mapping[str, Floats]
    totals: Mapping[str, float]

    @property
    def final(self) -> float | None:
        """Accuracy at the end; None where nothing was evaluated."""
        return float(self.accuracy[-1]) if len(self.accuracy) else None

    def at(self, cost: str, budget: float) -> float | None:
        """Accuracy of the last evaluation within a budget; None if there was none yet."""
        within = np.searchsorted(self.costs[cost], budget * (1 + 1e-12), side="right")
        return float(self.accuracy[within - 1]) if within else None

    def needed(self, cost: str, target: float) -> tuple[float, bool]:
        """What was spent when the target was first reached, or all that was spent and True."""
        reached = np.flatnonzero(self.accuracy >= target)
        return (float(self.costs[cost][reached[0]]), False) if len(reached) else (self.totals[cost], True)


def trajectory_of(run: Run) -> Trajectory:
    """Of a run's first evaluated split: test, then unseen, then validation."""
    summed = spent(run)
    along = {
        "virtual time": summed.virtual_seconds,
        "bytes": summed.wire_bytes,
        "energy": summed.joules + np.cumsum([record.server_joules for record in run.rounds]),
    }
    found = curves(run)
    where = list(found[0].rounds) if found else []
    return Trajectory(
        accuracy=np.array(found[0].accuracy if found else []),
        costs={cost: values[where] for cost, values in along.items()},
        totals={cost: float(values[-1]) for cost, values in along.items()},
    )


def measures_of(
    run: Run, trajectory: Trajectory, *, budgets: Mapping[str, float], target: float, clients: Iterable[int]
) -> list[Measure]:
    """Everything that is compared.

    Args:
        run: its records.
        trajectory: of it.
        budgets: by cost, what everybody may spend.
        target: the accuracy whose cost is asked for.
        clients: all that might have taken part.
    """
    found = [Measure(name="accuracy", group="", unit="share", value=trajectory.final)]
    for cost, unit in COSTS.items():
        needed, censored = trajectory.needed(cost, target)
        found += [
            Measure(
                name="accuracy at equal", group=cost, unit="share", value=trajectory.at(cost, budgets[cost])
            ),
            Measure(name="cost to target", group=cost, unit=unit, value=needed, censored=censored),
            Measure(name="total", group=cost, unit=unit, value=trajectory.totals[cost]),
        ]
    used_up = {"epsilon": run.rounds[-1].epsilon, "epsilon at cuts": run.rounds[-1].cut_epsilon}
    found += [
        Measure(name=name, group="", unit="epsilon", value=value)
        for name, value in used_up.items()
        if value is not None
    ]
    if run.rounds[-1].attack_success is not None:
        value = run.rounds[-1].attack_success
        found.append(Measure(name="attack success", group="", unit="share", value=value))
    lost = [plain - coded for _, plain, coded in with_and_without_codecs(run.rounds)]
    if lost:
        found.append(Measure(name="lost to codecs", group="", unit="share", value=float(np.median(lost))))
    return found + _attacks(run) + _waste(run) + _of_memory(run) + _of_clients(run, clients)


def _attacks(run: Run) -> list[Measure]:
    """What cuts gave away on average, and the last model's losses and updates of rows, where a run tried."""
    last = run.rounds[-1]
    measured = run.clients if run.config.get("leakage", {}).get("measure") else []
    # A whole model sends no hidden states.
    leaks = [record.leakage or 0.0 for record in measured]
    told = {
        "leaked at cuts": (float(np.mean(leaks)) if leaks else None, "share"),
        "membership AUC": (last.membership_auc, "share"),
        "members found": (last.membership_found, "share"),
        "membership AUC by ratio": (last.membership_ratio_auc, "share"),
        "members found by ratio": (last.membership_ratio_found, "share"),
        "words found": (last.words_found, "share"),
        "images found": (last.images_psnr, "dB"),
        "labels found": (last.labels_found, "share"),
    }
    return [
        Measure(name=name, group="", unit=unit, value=value)
        for name, (value, unit) in told.items()
        if value is not None
    ]


def _waste(run: Run) -> list[Measure]:
    """The share of what clients spent that no update came of."""
    lost = np.array([record.outcome != "ok" for record in run.clients])
    spendings = np.array([_spendings(record) for record in run.clients])
    shares = [
        float(column[lost].sum() / column.sum()) if column.sum() else None for column in spendings.T
    ] or [None] * len(COSTS)
    return [
        Measure(name="waste", group=cost, unit="share", value=share)
        for cost, share in zip(COSTS, shares, strict=True)
    ]


def _spendings(record: ClientRecord) -> tuple[float, float, float]:
    """In the order of `COSTS`."""
    crossed = record.boundary_up_bytes + record.boundary_down_bytes
    moved = record.up_bytes + record.down_bytes + record.provision_bytes + crossed
    return record.virtual_seconds, moved, record.joules


def _of_memory(run: Run) -> list[Measure]:
    peaks = [record.predicted_peak_bytes for record in run.clients]
    shares = [record.predicted_peak_bytes / record.memory_bytes for record in run.clients]
    return [
        Measure(name="peak memory", group="", unit="B", value=max(peaks, default=None)),
        Measure(name="peak share of memory", group="", unit="share", value=max(shares, default=None)),
    ]


def _of_clients(run: Run, clients: Iterable[int]) -> list[Measure]:
    counted = Counter(record.client_id for record in run.clients if record.outcome == "ok")
    found = [
        Measure(name="accuracy on device", group=one.device_class, unit="share", value=one.accuracy)
        for one in run.classes
    ]
    found += [
        Measure(
            name="participation", group="", unit="Jain's index", value=jain([counted[c] for c in clients])
        )
    ]
    own: list[float] = []
    for one in device_classes(run):
        if one.tests:
            found.append(
                Measure(
                    name="accuracy of class", group=one.name, unit="share", value=mean_accuracy(one.tests)
                )
            )
            own += [record.accuracy for record in one.tests]
    if own:
        worst = np.sort(own)[: max(1, round(len(own) / 10))]
        found.append(
            Measure(name="accuracy of worst tenth", group="", unit="share", value=float(worst.mean()))
        )
    unseen = [curve for curve in curves(run) if curve.split == "unseen"]
    if unseen:
        found.append(Measure(name="accuracy of unseen", group="", unit="share", value=unseen[0].accuracy[-1]))
    return found


def jain(amounts: Iterable[float]) -> float | None:
    """Jain's fairness index: 1 if all have the same, 1 / n if one has everything; None of nothing."""
    values = np.array(list(amounts), dtype=float)
    squares = float((values**2).sum())
    return float(values.sum() ** 2 / (len(values) * squares)) if squares else None
