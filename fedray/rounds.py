"""The parts of one round: jobs from a decision, audits, training and summing, records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fedray.adapter import Factors, GlobalState
from fedray.aggregation.rule import drift
from fedray.assignment import Assignment, Attention
from fedray.averaging import as_sent_up, averaged_ranks, handed_out, who_goes_on
from fedray.clock import ClosedRound, Trips, close_round, draw_dropouts
from fedray.cost import Device, Footprint, WorkShape
from fedray.errors import TrainingError
from fedray.model.anatomy import Anatomy
from fedray.model.wire import wire_bytes
from fedray.observable import statistics_to_json
from fedray.policy import Cohort
from fedray.price_sheet import compute_seconds_of, riders_of
from fedray.progress import Progress, Verdict
from fedray.record import ClientRecord, Outcome
from fedray.runtime.carrier import AuditJob, Done, Order, TrainPack
from fedray.runtime.split import SplitDone, SplitEvaluation
from fedray.scene import Scene
from fedray.scheduler import Pricing, Schedule
from fedray.seeds import derive_seed, generator
from fedray.server.lockstep import SplitRound
from fedray.serving import split_round, start_of
from fedray.training.audit import Audit
from fedray.training.evaluate import Outputs
from fedray.training.job import ClientState, Job, Update
from fedray.training.link import as_received, refuse_codecs, sent_down
from fedray.training.own_side import base_of
from fedray.training.shapes import site_ranks
from fedray.training.shares import in_blocks
from fedray.training.train import form_packs
from fedray.units import show_bytes

_UNKNOWN = Verdict(peak_bytes=0, at_least=True)


class Runtime(Protocol):
    """Where orders are carried out."""

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""

    def train_split(self, split: SplitRound) -> SplitDone:
        """The clients of a round that have a cut, in step with the server."""

    def evaluate_split(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """Of each chunk of rows, with the middle of the model on the server."""

    def close(self) -> None:
        """Give back what was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The clients of a round that were given something; arrays and tuples are [asked], in cohort order.

    Attributes:
        cohort: as they declare themselves; ``device`` what they really are.
        begins: virtual seconds from the run's start at which they were asked.
        positions: of the asked clients in the whole cohort.
    """

    cohort: Cohort
    device: Device
    begins: float
    schedule: Schedule
    jobs: tuple[Job, ...]
    positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A round's training: the new state, and what each client reported.

    Attributes:
        base_delta: that clients ran with.
        boundary: bytes that crossed the cut up and down, and messages, by client that had one.
        vanished: clients that did not answer in time.
    """

    state: GlobalState
    updates: Mapping[int, Update]
    up_bytes: Mapping[int, int]
    attempts: Mapping[int, int]
    base_delta: Mapping[str, Factors]
    boundary: Mapping[int, tuple[int, int, int]]
    vanished: frozenset[int]

    @property
    def client_states(self) -> dict[int, ClientState]:
        """What those whose updates count keep from now on, by client; whoever failed keeps what it had."""
        return {client: self.updates[client].client_state for client in self.up_bytes}


def broadcast_bytes(anatomy: Anatomy, base_delta: Mapping[str, Factors], assignment: Assignment) -> int:
    """What a client is sent besides its adapter: its own blocks' part of a base delta that a rule keeps."""
    own = in_blocks(anatomy, base_delta, assignment.client_blocks(anatomy.num_blocks)).items()
    return wire_bytes({f"{site}.{side}": t for site, f in own for side, t in (("a", f.a), ("b", f.b))})


def pricing_of(scene: Scene, progress: Progress, round_number: int) -> Pricing:
    """Prices with this round's broadcast on the downlink, and without own sides that stay where they are."""
    anatomy, base_delta = scene.anatomy, progress.state.base_delta
    broadcast = cache(lambda assignment: broadcast_bytes(anatomy, base_delta, assignment))

    def footprint_of(assignment: Assignment, shape: WorkShape) -> Footprint:
        traced = scene.footprint(assignment, shape)
        extra = broadcast(assignment) if base_delta else 0
        return replace(traced, down_bytes=traced.down_bytes + extra) if extra else traced

    return Pricing(
        footprint_of=as_sent_up(scene, footprint_of, round_number),
        holdings=progress.holdings,
        server=scene.server,
        goes_on=who_goes_on(scene, progress),
    )


def ask(scene: Scene, progress: Progress, cohort: Cohort, schedule: Schedule, begins: float = 0.0) -> Asked:
    """A job for every client that was given an assignment. Raises ConfigError for codecs the rule refuses."""
    rule, state, seed = scene.rule, progress.state, scene.config.seed
    given = schedule.decision.assignments
    positions = np.array([i for i, assignment in enumerate(given) if assignment is not None], np.int64)
    anatomy = scene.anatomy
    ranks_of = cache(lambda assignment: site_ranks(anatomy, assignment))
    jobs = []
    for i in positions.tolist():
        assignment, client = given[i], int(cohort.client_ids[i])
        assert assignment is not None
        fresh = rule.send(state, ranks_of(assignment), derive_seed(seed, "dispatch", cohort.round, client))
        start = start_of(scene, state, assignment, fresh)
        sent, kept = handed_out(scene, progress.client_states.get(client, {}), assignment, start)
        jobs.append(
            Job(
                round=cohort.round,
                client_id=client,
                dispatch=0,
                version=state.version,
                seed=seed,
                assignment=assignment,
                attention=cast(Attention, str(cohort.attention[i])),
                sent=sent,
                num_rows=int(cohort.num_rows[i]),
                num_steps=assignment.num_steps(int(cohort.num_rows[i])),
                tokens=int(cohort.tokens[i]),
                client_state=kept,
                keeps_own_side=assignment.split and not scene.averages(cohort.round),
                learning_rate_scale=scene.learning_rate_scale(cohort.round),
                observables=scene.policy.observables,
            )
        )
    refuse_codecs(rule, [job.assignment for job in jobs])
    received = tuple(sent_down(anatomy, job) for job in jobs)
    asked = cohort.take(positions)
    return Asked(
        cohort=asked,
        device=scene.actual.device(asked.device, asked.client_ids, asked.round, begins),
        begins=begins,
        schedule=schedule,
        jobs=received,
        positions=positions,
    )


def work_key(job: Job) -> str:
    """What an audit's verdict holds for: the assignment and the shape of its steps."""
    shape = replace(job.assignment, num_epochs=1, max_steps=None)
    return f"{shape.to_json()} tokens={job.tokens} attention={job.attention}"


def audit_clients(scene: Scene, progress: Progress, asked: Asked, runtime: Runtime) -> dict[int, int]:
    """Peak bytes of the clients that ran alone under the counter; verdicts go into the progress.

    A client that passes the memory it has is ended there.
    """
    memory, delta = asked.device.memory_bytes.tolist(), progress.state.base_delta
    due = _due_audits(scene, progress, asked)
    orders = [AuditJob(job=asked.jobs[i], base_delta=delta, limit_bytes=memory[i]) for i in due]
    measured: dict[int, int] = {}
    for order, done in zip(orders, runtime.carry_out(orders), strict=True):
        job = order.job
        assert isinstance(done.answer, Audit)
        key, peak = work_key(job), done.answer.peak_bytes
        measured[job.client_id] = peak
        # Clients of one key differ in their rows' lengths: the verdict is the most that any of them held.
        old = progress.audited.get(key, _UNKNOWN)
        ended = done.answer.over_limit and (peak > old.peak_bytes or old.at_least)
        progress.audited[key] = Verdict(peak_bytes=max(peak, old.peak_bytes), at_least=ended)
    return measured


def _due_audits(scene: Scene, progress: Progress, asked: Asked) -> list[int]:
    """Positions among the asked, ascending: of each piece of work without a verdict, and drawn ones.

    The one with most memory stands for all that do the same: if it does not fit there, it fits nobody.
    """
    section, memory = scene.config.audit, asked.device.memory_bytes.tolist()
    keys = [work_key(job) for job in asked.jobs]
    richest: dict[str, int] = {}
    for i, key in enumerate(keys):
        if memory[i] > memory[richest.setdefault(key, i)]:
            richest[key] = i
    due = []
    for i, (key, job) in enumerate(zip(keys, asked.jobs, strict=True)):
        known = progress.audited.get(key, _UNKNOWN).holds_for(memory[i])
        draw = generator(scene.config.seed, "audits", job.round, job.client_id).random()
        if (section.distinct and not known and richest[key] == i) or draw < section.share:
            due.append(i)
    return due


def trips_of(scene: Scene, progress: Progress, asked: Asked) -> Trips:
    """What the asked clients set out to do, at the rates and in the memory that they really have."""
    terms, at = asked.schedule.terms, asked.positions
    seconds, riders = terms.compute_seconds[at], terms.riders.take(at)
    if not scene.actual.as_declared:
        really, given = replace(asked.cohort, device=asked.device), [job.assignment for job in asked.jobs]
        seconds = compute_seconds_of(given, really, scene.footprint, scene.server)
        riders = riders_of(given, really, scene.footprint)[0]
    verdicts = [progress.audited.get(work_key(job), _UNKNOWN) for job in asked.jobs]
    held = np.array([verdict.peak_bytes for verdict in verdicts], np.int64)
    return Trips(
        client_ids=asked.cohort.client_ids,
        device=asked.device,
        fits=np.maximum(held, terms.peak_bytes[at]) <= asked.device.memory_bytes,
        compute_seconds=seconds,
        up_bytes=terms.up_bytes[at],
        down_bytes=terms.down_bytes[at],
        provision_bytes=terms.provision_bytes[at],
        riders=None if scene.server is None else riders,
        server=scene.server,
    )


def close(scene: Scene, progress: Progress, asked: Asked) -> ClosedRound:
    """The round on the virtual clock: who arrives, who is late, dropped or out of memory."""
    cohort, begins, leaves = asked.cohort, asked.begins, None
    if scene.config.dropouts:
        availability = scene.fleet.availability(cohort.client_ids)
        leaves = draw_dropouts(scene.config.seed, cohort.round, cohort.client_ids, availability)
    offline = scene.presence.until(cohort.client_ids, begins) - begins
    closed = close_round(trips_of(scene, progress, asked), scene.pace, leaves, offline)
    for job, received, storage in zip(asked.jobs, closed.received, cohort.device.storage_bytes, strict=True):
        if received:
            shape = WorkShape(rows=job.assignment.batch_size, tokens=job.tokens, attention=job.attention)
            held_bytes = scene.footprint(job.assignment, shape).held_bytes
            progress.holdings.receive(
                np.array([job.client_id]), held_bytes, job.assignment.dtype, np.array([storage])
            )
    return closed


def train(scene: Scene, progress: Progress, asked: Asked, closed: ClosedRound, runtime: Runtime) -> Trained:
    """Train those whose updates count, and sum the updates as they come, in the order of packs and clients.

    Raises:
        TrainingError: every client of the round failed.
    """
    state = progress.state
    jobs = [job for job, outcome in zip(asked.jobs, closed.outcomes, strict=True) if outcome == "ok"]
    accumulator = scene.rule.start(state)
    updates: dict[int, Update] = {}
    up_bytes: dict[int, int] = {}
    attempts: dict[int, int] = {}
    boundary: dict[int, tuple[int, int, int]] = {}
    for job, update, tries, crossed in _trained(scene, state, jobs, runtime):
        attempts[job.client_id] = tries
        # The delta is not kept: what a round holds grows with its clients only by what they keep.
        updates[job.client_id] = replace(update, delta=None, coded=None)
        if crossed is not None:
            boundary[job.client_id] = crossed
        if update.delta is not None:
            up_bytes[job.client_id] = wire_bytes(update.tensors())
            accumulator.add(update.delta, base_of(scene.anatomy, job), _weight(scene, job))
    if updates and not up_bytes:
        first, rate = next(iter(updates.values())), scene.config.training.learning_rate
        raise TrainingError(
            f"All {len(jobs)} clients of round {asked.cohort.round} failed, the first because "
            f"{first.message}. Lower training.learning_rate (now {rate:g}), or look at its rows."
        )
    return Trained(
        state=accumulator.finish(),
        updates=updates,
        up_bytes=up_bytes,
        attempts=attempts,
        base_delta=state.base_delta,
        boundary=boundary,
        vanished=frozenset(job.client_id for job in jobs) - updates.keys(),
    )


def _trained(
    scene: Scene, state: GlobalState, jobs: Sequence[Job], runtime: Runtime
) -> Iterator[tuple[Job, Update, int, tuple[int, int, int] | None]]:
    """Each job with its update, attempts and, under a cut, what crossed; whole models first, then cuts."""
    size = scene.config.packs.clients_per_pack
    packs = form_packs([job for job in jobs if not job.assignment.split], size)
    orders = [TrainPack(jobs=pack, base_delta=state.base_delta) for pack in packs]
    for pack, done in zip(packs, runtime.carry_out(orders), strict=True):
        assert isinstance(done.answer, list)
        for job, update in zip(pack, done.answer, strict=True):
            assert isinstance(update, Update)
            yield job, as_received(job, update), done.attempts, None
    cut = [job for job in jobs if job.assignment.split]
    if cut:
        split = split_round(scene, state, cut)
        found = runtime.train_split(split)
        for place, pack_updates in found.updates.items():
            for job, update in zip(split.packs[place], pack_updates, strict=True):
                yield job, update, found.attempts, found.crossed(job.client_id)


def drift_of(scene: Scene, progress: Progress, asked: Asked) -> float:
    """What a round without training would have changed; 0.0 for a rule that keeps law L1."""
    cohort = [(averaged_ranks(scene, job), _weight(scene, job)) for job in asked.jobs]
    return drift(scene.rule, progress.state, cohort)


def records_of(
    scene: Scene, asked: Asked, closed: ClosedRound, trained: Trained, measured: Mapping[int, int]
) -> list[ClientRecord]:
    """One row per asked client."""
    rows = []
    terms = asked.schedule.terms
    broadcast = cache(lambda assignment: broadcast_bytes(scene.anatomy, trained.base_delta, assignment))
    for i, job in enumerate(asked.jobs):
        client, at = job.client_id, int(asked.positions[i])
        update = trained.updates.get(client)
        failed = update is not None and client not in trained.up_bytes
        sent_bytes = job.sent_bytes + broadcast(job.assignment)
        timed = closed.boundary_up_bytes, closed.boundary_down_bytes, closed.num_messages
        crossed = trained.boundary.get(client) or tuple(int(column[i]) for column in timed)
        outcome: Outcome = "dropped" if client in trained.vanished else closed.outcomes[i]
        rows.append(
            ClientRecord(
                round=job.round,
                client_id=client,
                device_class=str(asked.cohort.device_class[i]),
                assignment=job.assignment.to_json(),
                memory_bytes=int(asked.cohort.device.memory_bytes[i]),
                predicted_peak_bytes=int(terms.peak_bytes[at]),
                measured_peak_bytes=measured.get(client),
                predicted_up_bytes=int(terms.up_bytes[at]),
                predicted_down_bytes=int(terms.down_bytes[at]),
                up_bytes=trained.up_bytes.get(client, int(closed.up_bytes[i])),
                down_bytes=sent_bytes if closed.received[i] else int(closed.down_bytes[i]),
                provision_bytes=int(closed.provision_bytes[i]),
                num_rows=job.num_rows,
                num_steps=job.num_steps,
                virtual_seconds=float(closed.client_seconds[i]),
                wall_seconds=None if update is None else update.wall_seconds,
                joules=float(closed.joules[i]),
                outcome="failed" if failed else outcome,
                cut=job.assignment.cut if job.assignment.split else None,
                waiting_seconds=float(closed.waiting_seconds[i]),
                boundary_up_bytes=crossed[0],
                boundary_down_bytes=crossed[1],
                num_messages=crossed[2],
                predicted_boundary_up_bytes=int(terms.boundary_up_bytes[at]),
                predicted_boundary_down_bytes=int(terms.boundary_down_bytes[at]),
                loss=None if update is None or failed else update.loss,
                attempts=trained.attempts.get(client, 0),
                message=_message(asked, i, update, closed.outcomes[i], measured.get(client)),
                statistics=_statistics(update),
                predicted_seconds=float(terms.virtual_seconds[at]),
            )
        )
    return rows


def _message(asked: Asked, i: int, update: Update | None, outcome: Outcome, held_bytes: int | None) -> str:
    has, says = int(asked.device.memory_bytes[i]), int(asked.cohort.device.memory_bytes[i])
    if outcome == "oom" and has < says:
        return f"it has {show_bytes(has)} and declares {show_bytes(says)}"
    if outcome == "oom" and held_bytes is not None:
        return f"its audit ended it at {show_bytes(held_bytes)}, above its memory"
    return "" if update is None else update.message


def _statistics(update: Update | None) -> str:
    found = {} if update is None else update.statistics
    return statistics_to_json({name: tensor.tolist() for name, tensor in found.items()})


def _weight(scene: Scene, job: Job) -> float:
    return float(job.num_rows) if scene.weighs_rows else 1.0
