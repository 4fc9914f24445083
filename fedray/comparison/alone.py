"""Training without averaging: each learner goes on from what it had, round by round, and is evaluated so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from fedray import rounds
from fedray.adapter import Adapter, GlobalState, applied
from fedray.cost import Ints
from fedray.evaluation import evaluate, headline, scored
from fedray.policy import Pace
from fedray.progress import Progress
from fedray.record import ClientRecord, EvaluationRecord, summed
from fedray.rounds import Asked, Runtime
from fedray.runtime.carrier import EvaluateRows, TrainPack
from fedray.scene import Scene
from fedray.scheduler import decide, price_menu
from fedray.told import told_by_the_clock
from fedray.training.evaluate import Outputs, evaluation_chunks, in_order
from fedray.training.job import Job, Update
from fedray.training.link import as_received
from fedray.training.packs import form_packs


@dataclass(frozen=True, slots=True, kw_only=True)
class Learners:
    """Who trains alone.

    Attributes:
        scene: with the rows that each of them has, whole models on the menu, and what each is given.
        ids: theirs, [learners].
        num_rounds: that they train.
        shares_model: there is one, and its model is everybody's.
        pooled_bytes: of rows brought to them first, and the ``pooled_seconds`` of that.
    """

    scene: Scene
    ids: Ints
    num_rounds: int
    shares_model: bool = False
    pooled_bytes: int = 0
    pooled_seconds: float = 0.0


def learn_alone(learners: Learners, progress: Progress, runtime: Runtime) -> None:
    """All rounds; records go into the progress, whose state stays what everybody started from."""
    own: dict[int, Adapter] = {}
    for number in range(1, learners.num_rounds + 1):
        started = perf_counter()
        asked = _asked(learners, progress, number, own)
        closed = rounds.close(learners.scene, progress, asked, Pace())
        found = _trained(learners.scene, rounds.counted(asked, closed), runtime)
        for job in asked.jobs:
            update = found.get(job.client_id)
            if update is not None and update.delta is not None:
                own[job.client_id] = applied(job.sent, update.delta)
        told = told_by_the_clock(learners.scene, progress, asked, closed, {})
        clients = [_told(record, found.get(record.client_id)) for record in told]
        seconds = closed.virtual_seconds
        if number == 1 and clients:
            clients[0], seconds = _with_pooling(clients[0], learners), seconds + learners.pooled_seconds
        last = number == learners.num_rounds
        due = last or (learners.shares_model and number % learners.scene.config.rounds.eval_rounds == 0)
        evaluations = _evaluated(learners, progress.state, own, number, runtime) if due else []
        progress.clients += clients
        progress.evaluations += evaluations
        accuracy, loss = headline(evaluations)
        record = summed(number, clients, virtual_seconds=seconds, wall_seconds=perf_counter() - started)
        progress.rounds.append(replace(record, accuracy=accuracy, loss=loss))


def _asked(learners: Learners, progress: Progress, number: int, own: Mapping[int, Adapter]) -> Asked:
    """Everybody's job, from what it has itself; adapters cross no link."""
    scene = learners.scene
    cohort = scene.cohort(number, learners.ids)
    pricing = rounds.pricing_of(scene, progress, number)
    offers = price_menu(scene.menu, cohort, pricing)
    schedule = decide(scene.policy, cohort, offers, {}, pricing)
    nothing = np.zeros(len(cohort), np.int64)
    terms = replace(schedule.terms, up_bytes=nothing, down_bytes=nothing)
    asked = rounds.ask(scene, progress, cohort, replace(schedule, terms=terms), progress.elapsed_seconds)
    jobs = tuple(replace(job, sent=own.get(job.client_id, job.sent)) for job in asked.jobs)
    return replace(asked, jobs=jobs)


def _trained(scene: Scene, jobs: Sequence[Job], runtime: Runtime) -> dict[int, Update]:
    """By client, what training came to."""
    packs = form_packs(jobs, scene.config.packs.clients_per_pack)
    orders = [TrainPack(jobs=pack, base_delta={}) for pack in packs]
    found: dict[int, Update] = {}
    for pack, done in zip(packs, runtime.carry_out(orders), strict=True):
        assert isinstance(done.answer, list)
        for job, update in zip(pack, done.answer, strict=True):
            assert isinstance(update, Update)
            found[job.client_id] = as_received(job, update)
    return found


def _told(record: ClientRecord, update: Update | None) -> ClientRecord:
    """The clock's record without an adapter on the links, and with what training came to."""
    record = replace(record, up_bytes=0, down_bytes=0)
    if update is None:
        return record
    failed = update.delta is None
    return replace(
        record,
        wall_seconds=update.wall_seconds,
        outcome="failed" if failed else record.outcome,
        loss=None if failed else update.loss,
        attempts=1,
        message=update.message,
    )


def _with_pooling(record: ClientRecord, learners: Learners) -> ClientRecord:
    return replace(
        record,
        down_bytes=record.down_bytes + learners.pooled_bytes,
        virtual_seconds=record.virtual_seconds + learners.pooled_seconds,
    )


def _evaluated(
    learners: Learners, start: GlobalState, own: Mapping[int, Adapter], number: int, runtime: Runtime
) -> list[EvaluationRecord]:
    """The one model as any global state; or everybody's own on its own test rows, or else on all of them."""
    scene = learners.scene
    if learners.shares_model:
        adapter = own.get(int(learners.ids[0]), start.adapter)
        return evaluate(scene, replace(start, adapter=adapter), number, runtime)
    parts, found = scene.partitions, []
    for client in learners.ids.tolist():
        rows = parts.test_of[client] if parts.test_of else parts.test
        if not len(rows):
            continue
        chunks = evaluation_chunks(scene.encoded.lengths, rows)
        adapter = own.get(client, start.adapter)
        orders = [EvaluateRows(adapter=adapter, rows=chunk) for chunk in chunks]
        answers: list[Outputs] = [done.answer for done in runtime.carry_out(orders)]  # type: ignore[misc]
        metrics = scene.task.metrics(
            in_order(rows, chunks, answers), [scene.rows[row] for row in rows.tolist()]
        )
        found.append(scored(scene, number, ("test", client, rows), metrics))
    return found
