"""Rounds that overlap: clients come and go at their own pace, and a round closes when enough have landed.

The virtual clock alone decides who trained from which version of the state, and who is asked when; the
training of a round's updates happens when the round closes, all together, from the versions that they were
sent. So results depend on no order in wall time, and a version is kept as long as somebody trains from it.

A round begins where the last one ended. Whenever the time is about to move on, free places are filled: the
policy is asked for as many clients as there are, among those who are neither on their way nor landed in this
round, and gives them something as in any round. Of equal moments the smaller client id lands first.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from fedray import rounds
from fedray.adapter import Adapter
from fedray.aggregation.joining import Joined, join
from fedray.aggregation.rule import Accumulator
from fedray.assignment import Assignment
from fedray.clock import Trips, close_round
from fedray.closing import trips_of
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Bools, Pace, View
from fedray.progress import Progress
from fedray.readiness import Readiness, view_of
from fedray.record import ClientRecord
from fedray.rounds import Runtime, Trained
from fedray.scene import Scene
from fedray.scheduler import ask_menu, ask_selection, decide, price_menu
from fedray.seeds import derive_seed
from fedray.told import told_by_the_clock, told_by_training
from fedray.training.job import Job
from fedray.training.link import sent_down
from fedray.training.own_side import base_of
from fedray.underway import Departure

_SOON = float(np.nextafter(0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """A round that has closed.

    Attributes:
        clients: who landed in it, by the order in which they did; in the last round also who was called off.
        virtual_seconds: from the end of the round before.
    """

    trained: Trained
    clients: list[ClientRecord]
    virtual_seconds: float


def play_until_closed(scene: Scene, progress: Progress, runtime: Runtime, number: int) -> Landed:
    """One round. Raises PolicyError if the policy asks more clients than there is room for."""
    step = _Step(scene, progress, runtime, number)
    while not step.full:
        step.fill()
        if not step.land():
            break
    way, begun = progress.under_way, step.begun
    trained = _train(scene, progress, step)
    way.keep(progress.state)
    clients = [told_by_training(record, trained) for record in step.landed]
    if number == scene.config.rounds.num_rounds:
        clients += [
            replace(
                _called_off(scene, one, way.now_seconds),
                round=number,
                staleness=progress.state.version - one.version,
            )
            for one in way.call_off()
        ]
    return Landed(trained=trained, clients=clients, virtual_seconds=way.now_seconds - begun)


@dataclass(slots=True)
class _Step:
    """A round as it goes on.

    Attributes:
        landed: records in the order in which their clients landed.
        buffer: those of them whose updates count.
        refills: how often the policy was asked for clients.
    """

    scene: Scene
    progress: Progress
    runtime: Runtime
    number: int
    begun: float = field(init=False)
    landed: list[ClientRecord] = field(default_factory=list)
    buffer: list[Departure] = field(default_factory=list)
    refills: int = 0

    def __post_init__(self) -> None:
        self.begun = self.progress.under_way.now_seconds

    @property
    def full(self) -> bool:
        """Whether the goal is reached."""
        goal = self.scene.pace.goal
        return goal is not None and len(self.buffer) >= goal

    def land(self) -> bool:
        """The next trip's end, if the round does not close before it, or for want of one."""
        way, pace = self.progress.under_way, self.scene.pace
        following = way.next_end()
        if following is None:
            return False
        if pace.deadline_seconds is not None and self.buffer:
            closes = self.begun + pace.deadline_seconds
            if following > closes:
                way.now_seconds = max(way.now_seconds, closes)
                return False
        departure = way.land()
        behind = self.progress.state.version - departure.version
        record = replace(departure.record, round=self.number, staleness=behind)
        if record.outcome == "ok" and pace.max_staleness is not None and behind > pace.max_staleness:
            record = replace(record, outcome="late", message=f"it was {behind} versions behind")
        if record.outcome == "ok":
            self.buffer.append(departure)
        self.landed.append(record)
        return True

    def fill(self) -> None:
        """Ask clients for the free places, before the time moves on."""
        way, scene = self.progress.under_way, self.scene
        following = way.next_end()
        if following is not None and following <= way.now_seconds:
            return
        concurrency = scene.pace.concurrency or scene.config.rounds.clients_per_round
        busy = np.array([*way.client_ids, *(record.client_id for record in self.landed)], np.int64)
        free = min(concurrency - len(way), scene.num_clients - len(busy))
        if free <= 0 or not self._somebody_comes(busy):
            return
        self._ask(busy, free)
        self.refills += 1

    def _somebody_comes(self, busy: Ints) -> bool:
        """Whether somebody can be asked now; with nobody on the way the time moves on until so."""
        way, scene = self.progress.under_way, self.scene
        if scene.presence.sessions is None and scene.batteries is None:
            return True
        idle = np.setdiff1d(np.arange(scene.num_clients), busy)
        opens = self._readiness().opens(idle, way.now_seconds)
        if opens > way.now_seconds and (len(way) or np.isinf(opens)):
            return False
        way.now_seconds = opens
        return True

    def _ask(self, busy: Ints, free: int) -> None:
        scene, progress, way, number = self.scene, self.progress, self.progress.under_way, self.number
        ready, now = self._readiness(), way.now_seconds
        pricing = ready.pricing
        view = self._view(ready, busy, free)
        menu = ask_menu(scene.policy, view)
        view = replace(view, offers_of=lambda ids: price_menu(menu, ready.cohort(ids, now), pricing))
        chosen, state = ask_selection(scene.policy, view, progress.policy_state)
        chosen = chosen[view.may_be_asked(chosen)]
        if len(chosen) > free:
            raise PolicyError(
                f"select chose {len(chosen)} clients at second {way.now_seconds:g} of round {number}, and "
                f"{free} more may be at work; choose at most view.clients_per_round."
            )
        progress.policy_state = state
        if not len(chosen):
            return
        cohort = ready.cohort(np.sort(chosen), now)
        schedule = decide(scene.policy, cohort, price_menu(menu, cohort, pricing), state, pricing)
        progress.policy_state = schedule.state
        asked = rounds.ask(scene, progress, cohort, schedule, way.now_seconds)
        measured = rounds.audit_clients(scene, progress, asked, self.runtime)
        trips = trips_of(scene, rounds.outing_of(progress, asked))
        # Everybody goes to the own end; the pace of the run says in which round that is.
        closed = rounds.close(scene, progress, asked, Pace())
        for i, record in enumerate(told_by_the_clock(scene, progress, asked, closed, measured)):
            way.depart(
                Departure(
                    version=progress.state.version,
                    start_seconds=asked.begins,
                    end_seconds=asked.begins + record.virtual_seconds,
                    compute_seconds=float(trips.compute_seconds[i]),
                    provision_bytes=int(trips.provision_bytes[i]),
                    record=record,
                )
            )

    def _readiness(self) -> Readiness:
        pricing = rounds.pricing_of(self.scene, self.progress, self.number)
        charges = self.progress.charges
        return Readiness(scene=self.scene, number=self.number, charges=charges, pricing=pricing)

    def _view(self, ready: Readiness, busy: Ints, free: int) -> View:
        scene = self.scene
        view = view_of(ready, self.progress.history(), self.progress.under_way.now_seconds)
        seed = view.seed
        if self.refills:
            seed = derive_seed(scene.config.seed, "selection", self.number, self.refills)

        def idle(ids: Ints) -> Bools:
            return view.may_be_asked(ids) & ~np.isin(ids, busy)

        return replace(
            view,
            seed=seed,
            clients_per_round=free,
            may_be_asked=idle,
            is_online=lambda ids: view.is_online(ids) & ~np.isin(ids, busy),
        )


def _train(scene: Scene, progress: Progress, step: _Step) -> Trained:
    """The updates of a round's buffer, by client, each from the version that it was sent."""
    way, pace = progress.under_way, scene.pace
    states = {**way.versions, progress.state.version: progress.state}
    jobs = []
    for one in sorted(step.buffer, key=lambda departure: departure.client_id):
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

    return rounds.train(scene, progress.state, jobs, step.runtime, add)


def _called_off(scene: Scene, one: Departure, now_seconds: float) -> ClientRecord:
    """Of a client that is on its way when a run ends: late, and charged for what it did until then."""
    record, ids = one.record, np.array([one.client_id])
    declared = scene.fleet.device(ids)
    trips = Trips(
        client_ids=ids,
        device=scene.actual.device(declared, ids, record.round, one.start_seconds),
        fits=np.array([record.outcome != "oom"]),
        compute_seconds=np.array([one.compute_seconds]),
        up_bytes=np.array([record.predicted_up_bytes]),
        down_bytes=np.array([record.predicted_down_bytes]),
        provision_bytes=np.array([one.provision_bytes]),
    )
    # A client that was asked this very moment has done nothing yet.
    deadline = max(now_seconds - one.start_seconds, _SOON)
    closed = close_round(trips, Pace(deadline_seconds=deadline))
    return replace(
        record,
        outcome="late",
        message="",
        virtual_seconds=float(closed.client_seconds[0]),
        up_bytes=int(closed.up_bytes[0]),
        down_bytes=record.down_bytes if closed.received[0] else int(closed.down_bytes[0]),
        provision_bytes=int(closed.provision_bytes[0]),
        joules=float(closed.joules[0]),
        receive_seconds=float(closed.receive_seconds[0]),
        compute_seconds=float(closed.compute_seconds[0]),
        send_seconds=float(closed.send_seconds[0]),
        loss=None,
    )
