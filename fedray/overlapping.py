"""A run's rounds that overlap: what landed is trained when its round closes.

Updates are trained together, from the versions that they were sent, so results depend on no order in wall
time; and a version is kept as long as somebody trains from it. Who lands when is `fedray.landing`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedray import rounds
from fedray.adapter import Adapter
from fedray.aggregation.joining import Joined, join
from fedray.aggregation.rule import Accumulator
from fedray.assignment import Assignment
from fedray.landing import Landed, Leaving, called_off, play_until_closed
from fedray.policy import Cohort
from fedray.progress import Progress
from fedray.record import ClientRecord
from fedray.rounds import Runtime, Trained
from fedray.scene import Scene
from fedray.scheduler import Pricing, Schedule
from fedray.told import told_by_the_clock, told_by_training
from fedray.training.job import Job
from fedray.training.link import sent_down
from fedray.training.own_side import base_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """A round that has closed and was trained.

    Attributes:
        clients: who landed in it, by the order in which they did; in the last round also who was called off.
        virtual_seconds: from the end of the round before.
        server_joules: while it swept in them.
    """

    trained: Trained
    clients: list[ClientRecord]
    virtual_seconds: float
    server_joules: float


def play_overlapping(scene: Scene, progress: Progress, runtime: Runtime, number: int) -> Joint:
    """One round. Raises PolicyError if the policy asks more clients than there is room for."""
    playing = _Run(scene, progress, runtime)
    landed = play_until_closed(playing, number)
    trained = _train(scene, progress, runtime, landed)
    progress.under_way.keep(progress.state)
    clients = [told_by_training(record, trained) for record in landed.clients]
    if number == scene.config.rounds.num_rounds:
        clients += called_off(playing, number)
    return Joint(
        trained=trained,
        clients=clients,
        virtual_seconds=landed.virtual_seconds,
        server_joules=landed.server_joules,
    )


@dataclass(slots=True)
class _Run:
    """`fedray.landing.Playing` for a run that trains."""

    scene: Scene
    book: Progress
    runtime: Runtime

    @property
    def version(self) -> int:
        return self.book.state.version

    def history(self) -> Sequence[Mapping[str, object]]:
        return self.book.history()

    def pricing(self, number: int) -> Pricing:
        return rounds.pricing_of(self.scene, self.book, number)

    def leaving(self, cohort: Cohort, schedule: Schedule, begins: float) -> Leaving:
        scene, progress = self.scene, self.book
        asked = rounds.ask(scene, progress, cohort, schedule, begins)
        measured = rounds.audit_clients(scene, progress, asked, self.runtime)
        return Leaving(
            outing=rounds.outing_of(progress, asked),
            told=lambda closed: told_by_the_clock(scene, progress, asked, closed, measured),
        )


def _train(scene: Scene, progress: Progress, runtime: Runtime, landed: Landed) -> Trained:
    """The updates of a round's buffer, by client, each from the version that it was sent."""
    way, pace = progress.under_way, scene.pace
    states = {**way.versions, progress.state.version: progress.state}
    jobs = []
    for one in sorted(landed.buffer, key=lambda departure: departure.client_id):
        client, asked_in = one.client_id, one.record.round
        alone = scene.cohort(asked_in, np.array([client]))
        assignment = Assignment.from_json(one.record.assignment)
        start = rounds.sender(scene, states[one.version], asked_in)(assignment, client)
        kept = progress.client_states.get(client, {})
        jobs.append(sent_down(scene.anatomy, rounds.job_for(scene, alone, assignment, start, kept)))

    def add(total: Accumulator, job: Job, delta: Adapter) -> None:
        send = rounds.sender(scene, progress.state, job.round)
        joined = Joined(
            delta=delta,
            sent=base_of(scene.anatomy, job),
            weight=rounds.weight_of(scene, job),
            staleness=progress.state.version - job.version,
            sent_now=lambda: send(job.assignment, job.client_id).adapter,
        )
        join(total, scene.rule, pace, joined)

    return rounds.train(scene, progress.state, jobs, runtime, add)
