"""The parts of one round: jobs from a decision, audits, training and summing, records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.disagreement import Disagreement
from fedray.aggregation.rule import Accumulator, drift
from fedray.aggregation.secure_sum import with_masking
from fedray.assignment import Assignment, Attention
from fedray.averaging import as_sent_up, averaged_ranks, handed_out, who_goes_on
from fedray.clock import ClosedRound
from fedray.closing import Outing, close_on_clock, within_deadline
from fedray.cost import Device, Footprint, WorkShape
from fedray.errors import TrainingError
from fedray.masked import lost_for_want_of_others, with_masks
from fedray.model.anatomy import Anatomy
from fedray.model.wire import wire_bytes
from fedray.policy import Cohort, Pace
from fedray.privacy import cut_noise_of
from fedray.progress import Progress, Verdict
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
from fedray.training.tap import Heard
from fedray.training.train import form_packs
from fedray.training.variates import ServersSum, refuse_other_shapes, servers_variate

# Adds an update, a delta of its job, to a round's sum.
Add = Callable[[Accumulator, Job, Adapter], None]
_UNKNOWN = Verdict(peak_bytes=0, at_least=True)


class Runtime(Protocol):
    """Where orders are carried out."""

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""

    def train_split(self, split: SplitRound, heard: Heard | None = None) -> SplitDone:
        """The clients of a round that have a cut, in step with the server; ``heard`` is told what passes."""

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
        disagreement: of the updates; see `fedray.aggregation.disagreement`.
        plain: the state that the updates would have made as they were before coding, where that is asked.
    """

    state: GlobalState
    updates: Mapping[int, Update]
    up_bytes: Mapping[int, int]
    attempts: Mapping[int, int]
    base_delta: Mapping[str, Factors]
    boundary: Mapping[int, tuple[int, int, int]]
    vanished: frozenset[int]
    disagreement: float | None = None
    plain: GlobalState | None = None

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
    refuse_codecs(scene.rule, [entry for entry in schedule.decision.assignments if entry is not None])
    given = schedule.decision.assignments
    positions = np.array([i for i, assignment in enumerate(given) if assignment is not None], np.int64)
    send = sender(scene, progress.state, cohort.round)
    jobs = []
    for i in positions.tolist():
        assignment, client = given[i], int(cohort.client_ids[i])
        assert assignment is not None
        kept = progress.client_states.get(client, {})
        jobs.append(job_for(scene, cohort.take(np.array([i])), assignment, send(assignment, client), kept))
    jobs = with_masks(scene, progress.state, jobs, [weight_of(scene, job) for job in jobs])
    received = tuple(sent_down(scene.anatomy, job) for job in jobs)
    asked = cohort.take(positions)
    return Asked(
        cohort=asked,
        device=scene.actual.device(asked.device, asked.client_ids, asked.round, begins),
        begins=begins,
        schedule=schedule,
        jobs=received,
        positions=positions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a client is sent: of which version of the state, what, and the server's control variate."""

    version: int
    adapter: Adapter
    variate: Mapping[str, Tensor] = field(default_factory=dict)


def sender(scene: Scene, state: GlobalState, round_number: int) -> Callable[[Assignment, int], Start]:
    """Tells what a client that is asked in a round is sent of a state, by its assignment and itself."""
    ranks_of = cache(lambda assignment: site_ranks(scene.anatomy, assignment))
    variate = servers_variate(state) if scene.optimizer.control_variates else {}

    def send(assignment: Assignment, client: int) -> Start:
        seed = derive_seed(scene.config.seed, "dispatch", round_number, client)
        fresh = scene.rule.send(state, ranks_of(assignment), seed)
        start = start_of(scene, state, assignment, fresh)
        if variate:
            refuse_other_shapes(state, start, assignment)
        return Start(version=state.version, adapter=start, variate=variate)

    return send


def job_for(scene: Scene, alone: Cohort, assignment: Assignment, start: Start, kept: ClientState) -> Job:
    """What one client, a cohort of its own, is told to do; ``kept`` is what it kept of earlier rounds."""
    sent, kept = handed_out(scene, kept, assignment, start.adapter)
    rows = int(alone.num_rows[0])
    return Job(
        round=alone.round,
        client_id=int(alone.client_ids[0]),
        dispatch=0,
        version=start.version,
        seed=scene.config.seed,
        assignment=assignment,
        attention=cast(Attention, str(alone.attention[0])),
        sent=sent,
        num_rows=rows,
        num_steps=assignment.num_steps(rows),
        tokens=int(alone.tokens[0]),
        client_state=kept,
        variate=start.variate,
        keeps_own_side=assignment.split and not scene.averages(alone.round),
        learning_rate_scale=scene.learning_rate_scale(alone.round),
        observables=scene.policy.observables,
        update_factor=1.0 if scene.poisoning is None else scene.poisoning.factor_of(int(alone.client_ids[0])),
        privacy=scene.privacy if scene.privacy is not None and scene.privacy.where == "local" else None,
        cut_noise=cut_noise_of(scene.config) if assignment.split else None,
        keeps_plain=_keeps_plain(scene, alone.round, assignment),
    )


def _keeps_plain(scene: Scene, round_number: int, assignment: Assignment) -> bool:
    """Whether what a codec costs is asked, and there is one."""
    return scene.config.audit.codecs and scene.evaluates(round_number) and assignment.up_codec != "none"


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


def outing_of(progress: Progress, asked: Asked) -> Outing:
    """What the asked clients set out to do, and what audits of such work have shown so far."""
    verdicts = [progress.audited.get(work_key(job), _UNKNOWN) for job in asked.jobs]
    return Outing(
        cohort=asked.cohort,
        device=asked.device,
        begins=asked.begins,
        given=[job.assignment for job in asked.jobs],
        terms=asked.schedule.terms.take(asked.positions),
        num_steps=np.array([job.num_steps for job in asked.jobs], np.int64),
        peak_bytes=np.array([verdict.peak_bytes for verdict in verdicts], np.int64),
    )


def cut_short(scene: Scene, progress: Progress, asked: Asked) -> Asked:
    """The same with as many steps of each as the deadline allows, where the pace takes partial work."""
    steps = within_deadline(scene, outing_of(progress, asked)).num_steps.tolist()
    jobs = (replace(job, num_steps=count) for job, count in zip(asked.jobs, steps, strict=True))
    return replace(asked, jobs=tuple(jobs))


def close(scene: Scene, progress: Progress, asked: Asked, pace: Pace | None = None) -> ClosedRound:
    """The round on the virtual clock: who arrives, is late, dropped or out of memory; at the run's pace."""
    return close_on_clock(scene, progress.holdings, progress.charges, outing_of(progress, asked), pace)


def counted(asked: Asked, closed: ClosedRound) -> list[Job]:
    """The jobs of those whose updates count."""
    return [job for job, outcome in zip(asked.jobs, closed.outcomes, strict=True) if outcome == "ok"]


def train(
    scene: Scene, state: GlobalState, jobs: Sequence[Job], runtime: Runtime, add: Add | None = None
) -> Trained:
    """Train these, and sum the updates as they come, in the order of packs and clients.

    Args:
        scene: of the run.
        state: that the sum starts from.
        jobs: of clients whose updates count.
        runtime: where they run.
        add: an update to the sum; if absent with the weight of its client.

    Raises:
        TrainingError: every client failed.
    """
    accumulator = with_masking(scene.rule, jobs[0].masking if jobs else None).start(state)
    plain = scene.rule.start(state) if any(job.keeps_plain for job in jobs) else None
    put = add or partial(_put, scene)
    updates: dict[int, Update] = {}
    up_bytes: dict[int, int] = {}
    attempts: dict[int, int] = {}
    boundary: dict[int, tuple[int, int, int]] = {}
    unlike = Disagreement()
    variate = ServersSum(scene.optimizer, _weight_of_all(scene))
    for job, update, tries, crossed in _trained(scene, state, jobs, runtime):
        attempts[job.client_id] = tries
        # The delta is not kept: what a round holds grows with its clients only by what they keep.
        updates[job.client_id] = replace(update, delta=None, coded=None, plain=None)
        if crossed is not None:
            boundary[job.client_id] = crossed
        if update.delta is not None:
            up_bytes[job.client_id] = wire_bytes(update.tensors())
            variate.add(job, update.delta, weight_of(scene, job))
            if scene.rule.keeps_rank_indices and not update.delta.places:
                unlike.add(update.delta.tensors(), weight_of(scene, job))
            put(accumulator, job, update.delta)
            if plain is not None:
                put(plain, job, update.plain or update.delta)
    if updates and not up_bytes:
        first, rate = next(iter(updates.values())), scene.config.training.learning_rate
        raise TrainingError(
            f"All {len(jobs)} clients of round {jobs[0].round} failed, the first because "
            f"{first.message}. Lower training.learning_rate (now {rate:g}), or look at its rows."
        )
    why_lost = lost_for_want_of_others(jobs, len(up_bytes))
    if why_lost:
        up_bytes, updates = {}, {c: replace(update, message=why_lost) for c, update in updates.items()}
    return Trained(
        state=variate.after(accumulator.finish()),
        updates=updates,
        up_bytes=up_bytes,
        attempts=attempts,
        base_delta=state.base_delta,
        boundary=boundary,
        vanished=frozenset(job.client_id for job in jobs) - updates.keys(),
        disagreement=unlike.value,
        plain=None if plain is None else plain.finish(),
    )


def _put(scene: Scene, total: Accumulator, job: Job, delta: Adapter) -> None:
    """An update with the weight of its client."""
    total.add(delta, base_of(scene.anatomy, job), weight_of(scene, job))


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
    cohort = [(averaged_ranks(scene, job), weight_of(scene, job)) for job in asked.jobs]
    return drift(scene.rule, progress.state, cohort)


def weight_of(scene: Scene, job: Job) -> float:
    """What an update counts beside others."""
    return float(job.num_rows) if scene.weighs_rows else 1.0


def _weight_of_all(scene: Scene) -> float:
    """The weights of all clients there are, together."""
    return float(scene.num_rows.sum()) if scene.weighs_rows else float(scene.num_clients)
