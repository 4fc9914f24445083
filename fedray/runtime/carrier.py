"""What a process does for logical clients: train a pack, evaluate a chunk, audit one, attack one or all.

The local runtime calls a carrier directly, an actor on Ray wraps one: the same code on the same values.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fedray.adapter import Adapter
from fedray.assignment import Assignment
from fedray.attacks.shadows import losses_of_shadows
from fedray.attacks.tried import Tried, tried
from fedray.cost import Floats
from fedray.model.sites import swapped
from fedray.placement import Load
from fedray.runtime.allocator import keep_freed_memory
from fedray.training.audit import Audit, audit
from fedray.training.base_delta import BaseDelta, moved_blocks
from fedray.training.client_half import PackHalves
from fedray.training.data import Rows
from fedray.training.evaluate import Outputs, evaluate_rows
from fedray.training.job import Job, Update
from fedray.training.link import on_its_way
from fedray.training.train import Workshop, train_pack
from fedray.training.workshop import Blueprint, Stock, open_workshop

Pack = tuple[Job, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPack:
    """Train these jobs in one forward, on the backbone moved by ``base_delta``."""

    jobs: Pack
    base_delta: BaseDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRows:
    """Evaluate an adapter on rows of the pool, with ``model`` as a client would that has this assignment."""

    adapter: Adapter
    rows: Rows
    model: Assignment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditJob:
    """Run one client alone under the counter, ended at ``limit_bytes`` if given."""

    job: Job
    base_delta: BaseDelta
    limit_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookInto:
    """Try to find the rows of an update; see `fedray.attacks.tried`."""

    job: Job
    delta: Adapter
    rows: Rows
    search_steps: int
    base_delta: BaseDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class CastShadows:
    """Train these shadow models in one forward, and ask each about rows of the pool.

    Attributes:
        jobs: of some shadows, by their numbers.
        halves: the rows that each of all shadows sees, by number.
        rows: that are asked about.
    """

    jobs: Pack
    halves: tuple[Rows, ...]
    rows: Rows


Order = TrainPack | EvaluateRows | AuditJob | LookInto | CastShadows
# Of shadows the losses, [S, N].
Answer = list[Update] | Outputs | Audit | Tried | Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An order's answer, and how many processes it took: 1 unless one died over it."""

    answer: Answer
    attempts: int


def load_of(order: Order) -> Load:
    """What of an order takes wall time; its work is padded tokens times blocks, once more if trained."""
    match order:
        case TrainPack(jobs=jobs):
            return _load_of_steps("train", jobs)
        case CastShadows(jobs=jobs):
            return _load_of_steps("cast shadows", jobs)
        case AuditJob(job=job):
            walks_one = _blocks_walked(job.assignment)
            size = job.assignment.batch_size * job.tokens
            return Load(kind=f"audit {job.assignment.dtype}", passes=walks_one, work=walks_one * size)
        case EvaluateRows(rows=rows):
            return Load(kind="evaluate", passes=0, work=len(rows))
        case LookInto(rows=rows):
            return Load(kind="look into", passes=0, work=len(rows))


def _load_of_steps(doing: str, jobs: Pack) -> Load:
    walks = [job.num_steps * _blocks_walked(job.assignment) for job in jobs]
    rows = [job.assignment.batch_size * job.tokens for job in jobs]
    return Load(
        kind=f"{doing} {jobs[0].assignment.dtype}",
        passes=max(walks),
        work=sum(own * size for own, size in zip(walks, rows, strict=True)),
    )


def _blocks_walked(assignment: Assignment) -> int:
    """In one step, up and where blocks are trained down again."""
    return len(assignment.blocks) + assignment.num_trained_blocks


class Carrier:
    """Carries many logical clients, one order at a time."""

    def __init__(self, blueprint: Blueprint, stock: Stock) -> None:
        """Opens the workshop once; every order uses it, and the memory of the one before."""
        keep_freed_memory()
        self._workshop = open_workshop(blueprint, stock)
        self._halves: PackHalves | None = None

    @property
    def workshop(self) -> Workshop:
        """Of this process."""
        return self._workshop

    def carry_out(self, order: Order) -> Answer:
        """The answer to an order; equal orders get equal answers, bit for bit, on any carrier."""
        match order:
            case TrainPack():
                with self._moved(order.base_delta, order.jobs):
                    updates = train_pack(self._workshop, order.jobs)
                    return [on_its_way(job, update) for job, update in zip(order.jobs, updates, strict=True)]
            case EvaluateRows():
                return evaluate_rows(self._workshop, order.adapter, order.rows, model=order.model)
            case AuditJob():
                with self._moved(order.base_delta, (order.job,)):
                    return audit(self._workshop, order.job, order.limit_bytes)
            case LookInto():
                with self._moved(order.base_delta, (order.job,)):
                    return tried(self._workshop, order.job, order.delta, order.rows, order.search_steps)
            case CastShadows():
                return losses_of_shadows(self._workshop, order.jobs, order.halves, order.rows)

    def open_split(
        self, packs: Mapping[int, Pack], targets: Sequence[str], base_delta: BaseDelta, *, clips_as_one: bool
    ) -> None:
        """Begin the clients' side of a round under a cut; see `fedray.training.client_half.PackHalves`."""
        self._halves = PackHalves(
            self._workshop, packs, targets, clips_as_one=clips_as_one, base_delta=base_delta
        )

    @property
    def halves(self) -> PackHalves:
        """The clients' side of the round under way."""
        assert self._halves is not None, "open_split comes first"
        return self._halves

    def _moved(self, base_delta: BaseDelta, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        assignment = jobs[0].assignment
        backbone = self._workshop.backbones[assignment.dtype]
        blocks = assignment.client_blocks(backbone.anatomy.num_blocks)
        weights = moved_blocks(backbone, blocks, base_delta, self._workshop.device)
        return swapped(backbone.sites, weights)
