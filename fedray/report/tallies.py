"""What a report shows, counted from a run's records: progress, mix, memory, classes."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Floats
from fedray.record import ClientRecord, EvaluationRecord, Outcome, RoundRecord
from fedray.report.reading import Run

OUTCOMES: tuple[Outcome, ...] = ("ok", "late", "dropped", "oom", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Accuracy on one split: after which rounds (positions in the run's rounds), and what it was."""

    split: str
    rounds: tuple[int, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What had been spent when each round ended, [rounds] each; summed from the run's start."""

    virtual_seconds: Floats
    wall_seconds: Floats
    up_bytes: Floats
    down_bytes: Floats
    provision_bytes: Floats
    boundary_bytes: Floats
    waiting_seconds: Floats
    joules: Floats

    @property
    def wire_bytes(self) -> Floats:
        """Up, down, over cuts and provision together."""
        return self.every_round_bytes + self.provision_bytes

    @property
    def every_round_bytes(self) -> Floats:
        """Those of them that move in every round: all but provision."""
        return self.up_bytes + self.down_bytes + self.boundary_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One distinct assignment: its letter in figures, and the client-rounds that got it."""

    code: str
    assignment: Assignment
    records: tuple[ClientRecord, ...]

    @property
    def audited(self) -> tuple[ClientRecord, ...]:
        """Those that ran alone under the counter."""
        return tuple(record for record in self.records if record.measured_peak_bytes is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """One device class: its client-rounds, and what its clients' own rows say at the end.

    Attributes:
        rounds_by_client: rounds each of its clients was asked in; 0 for one that was only evaluated.
        tests: its clients' last evaluations, on their own test rows.
    """

    name: str
    records: tuple[ClientRecord, ...]
    rounds_by_client: dict[int, int]
    tests: tuple[EvaluationRecord, ...]

    @property
    def ok_share(self) -> float | None:
        """Share of its client-rounds whose update counted; None where nobody was asked."""
        return sum(r.outcome == "ok" for r in self.records) / len(self.records) if self.records else None


def with_and_without_codecs(rounds: Sequence[RoundRecord]) -> list[tuple[int, float, float]]:
    """Of each round that measured it: which, and the accuracy without codecs and with them."""
    return [
        (record.round, record.plain_accuracy, record.accuracy)
        for record in rounds
        if record.plain_accuracy is not None and record.accuracy is not None
    ]


def spent(run: Run) -> Spent:
    """Bytes are the clients' counted ones, so that provision is never counted twice."""
    index = {record.round: position for position, record in enumerate(run.rounds)}
    wire = np.zeros((5, len(run.rounds)))
    for record in run.clients:
        if record.round in index:
            crossed = record.boundary_up_bytes + record.boundary_down_bytes
            moved = record.up_bytes, record.down_bytes, record.provision_bytes, crossed
            wire[:, index[record.round]] += *moved, record.waiting_seconds
    up, down, provision, boundary, waiting = np.cumsum(wire, axis=1)
    return Spent(
        virtual_seconds=np.cumsum([r.virtual_seconds for r in run.rounds]),
        wall_seconds=np.cumsum([r.wall_seconds for r in run.rounds]),
        up_bytes=up,
        down_bytes=down,
        provision_bytes=provision,
        boundary_bytes=boundary,
        waiting_seconds=waiting,
        joules=np.cumsum([r.joules for r in run.rounds]),
    )


def curves(run: Run) -> list[Curve]:
    """Accuracy on each split, over rows; the split that the rounds' own accuracy is of comes first."""
    found = []
    index = {record.round: position for position, record in enumerate(run.rounds)}
    for split in ("test", "unseen", "validation"):
        by_round: dict[int, list[EvaluationRecord]] = defaultdict(list)
        for record in run.evaluations:
            if record.split == split and record.round in index:
                by_round[index[record.round]].append(record)
        points = [(i, mean_accuracy(nobodys(rows) or rows)) for i, rows in sorted(by_round.items())]
        if points:
            found.append(_curve(split, points))
    measured = [(i, r.accuracy) for i, r in enumerate(run.rounds) if r.accuracy is not None]
    return found or ([_curve("evaluated", measured)] if measured else [])


def _curve(split: str, points: Sequence[tuple[int, float]]) -> Curve:
    return Curve(split=split, rounds=tuple(i for i, _ in points), accuracy=tuple(a for _, a in points))


def nobodys(records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """Evaluations on rows that belong to no client: all rows of a split at once."""
    return [record for record in records if record.client_id < 0]


def mean_accuracy(records: Sequence[EvaluationRecord]) -> float:
    """Over rows: a client with more rows weighs more. Not a number without any row."""
    rows = sum(r.num_rows for r in records)
    return sum(r.accuracy * r.num_rows for r in records) / rows if rows else float("nan")


def best_round(run: Run) -> RoundRecord | None:
    """The evaluated round of the highest accuracy, the first of equals."""
    evaluated = [record for record in run.rounds if record.accuracy is not None]
    return max(evaluated, key=lambda record: record.accuracy or 0.0, default=None)


def last_evaluated(run: Run) -> RoundRecord | None:
    """The last round after which the global state was evaluated."""
    return next((record for record in reversed(run.rounds) if record.accuracy is not None), None)


def given(run: Run) -> list[Given]:
    """Distinct assignments, the least demanding first: by depth, rank, recompute first, cut, batch."""
    by_text: dict[str, list[ClientRecord]] = defaultdict(list)
    for record in run.clients:
        by_text[record.assignment].append(record)
    parsed = sorted(((Assignment.from_json(text), text) for text in by_text), key=lambda pair: _demand(*pair))
    return [
        Given(code=_code(position), assignment=assignment, records=tuple(by_text[text]))
        for position, (assignment, text) in enumerate(parsed)
    ]


def _demand(assignment: Assignment, text: str) -> tuple[int, int, bool, int, int, str, str]:
    a = assignment
    return a.num_trained_blocks, a.max_rank, not a.recompute, len(a.blocks), a.batch_size, a.dtype, text


def _code(position: int) -> str:
    letters = ""
    position += 1
    while position:
        position, letter = divmod(position - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def device_classes(run: Run) -> list[DeviceClass]:
    """Every class that was asked or evaluated; the one with the least declared memory first."""
    asked: dict[str, list[ClientRecord]] = defaultdict(list)
    for record in run.clients:
        asked[record.device_class].append(record)
    # Unseen clients have rows but no device, so they are in no class.
    own = [r for r in run.evaluations if r.client_id >= 0 and r.split == "test" and r.device_class]
    names = {*asked, *(record.device_class for record in own)}
    found = [_device_class(name, asked[name], [r for r in own if r.device_class == name]) for name in names]
    return sorted(found, key=lambda c: (_usual_memory(c), c.name))


def _usual_memory(device_class: DeviceClass) -> float:
    memory = [record.memory_bytes for record in device_class.records]
    return float(np.median(memory)) if memory else np.inf


def _device_class(name: str, asked: list[ClientRecord], own: list[EvaluationRecord]) -> DeviceClass:
    counts = Counter(record.client_id for record in asked)
    return DeviceClass(
        name=name,
        records=tuple(asked),
        rounds_by_client={**{r.client_id: 0 for r in own}, **counts},
        tests=_last(own),
    )


def _last(records: list[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
    last = max((record.round for record in records), default=None)
    return tuple(record for record in records if record.round == last)


def has_cuts(run: Run) -> bool:
    """Whether any client kept only some of the blocks and a server ran the others."""
    return any(record.cut is not None for record in run.clients)


def outcome_counts(record: RoundRecord) -> tuple[int, ...]:
    """Clients of a round by outcome, in the order of `OUTCOMES`."""
    return record.num_ok, record.num_late, record.num_dropped, record.num_oom, record.num_failed


def troubles(run: Run) -> list[ClientRecord]:
    """Client-rounds worth a line of their own: failed, out of memory, or run again."""
    return [r for r in run.clients if r.outcome in ("failed", "oom") or r.attempts > 1 or r.message]
