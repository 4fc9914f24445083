"""Rounds that overlap, on the virtual clock: clients come and go, and a round closes when enough have landed.

The virtual clock alone decides who works from which version of the state, and who is asked when, so a run
that trains and a simulation that does not are the same here; what they do beside it stands behind `Playing`.

A round begins where the last one ended. Whenever the time is about to move on, free places are filled: the
policy is asked for as many clients as there are, among those who are neither on their way nor landed in this
round, and gives them something as in any round. Of equal moments the smaller client id lands first.

How a trip under a cut goes is told as it ends, for whoever sets out meanwhile shares its server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedray.battery import Charges
from fedray.clock import ClosedRound
from fedray.closing import Outing, close_on_clock, short_of_charge, trips_of
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.holdings import Holdings
from fedray.policy import Bools, Cohort, Pace, State, View
from fedray.readiness import Readiness, view_of
from fedray.record import ClientRecord
from fedray.scene import Scene
from fedray.scheduler import Pricing, Schedule, ask_menu, ask_selection, decide, price_menu
from fedray.seeds import derive_seed
from fedray.underway import Departure, Landing, UnderWay


class Book(Protocol):
    """What a run or a simulation changes as clients come and go.

    Attributes:
        under_way: who is at work between rounds.
        holdings: what clients have received.
        charges: how full batteries were left.
        policy_state: what the policy remembers.
    """

    under_way: UnderWay
    holdings: Holdings
    charges: Charges
    policy_state: State


class Playing(Protocol):
    """The run, or the simulation, whose rounds overlap."""

    scene: Scene

    @property
    def book(self) -> Book:
        """What it changes."""

    @property
    def version(self) -> int:
        """Of the state: one more with every round in which an update counted."""

    def history(self) -> Sequence[Mapping[str, object]]:
        """Of the rounds that are over, as a policy sees it."""

    def pricing(self, number: int) -> Pricing:
        """Of a round."""

    def leaving(self, cohort: Cohort, schedule: Schedule, begins: float) -> "Leaving":
        """Those who were given something, before they set out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """A round that has closed, before anything was learnt in it.

    Attributes:
        clients: who landed in it, by the order in which they did.
        buffer: those of them whose updates count.
        virtual_seconds: from the end of the round before.
        server_joules: while it swept in them.
    """

    clients: list[ClientRecord]
    buffer: list[Departure]
    virtual_seconds: float
    server_joules: float


def play_until_closed(playing: Playing, number: int) -> Landed:
    """One round. Raises PolicyError if the policy asks more clients than there is room for."""
    step = _Step(playing, number)
    while not step.full:
        step.fill()
        if not step.land():
            break
    way, server = playing.book.under_way, playing.scene.server
    watts = 0.0 if server is None else server.all_watts
    return Landed(
        clients=step.landed,
        buffer=step.buffer,
        virtual_seconds=way.now_seconds - step.begun,
        server_joules=way.swept_seconds() * watts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Who sets out at one moment.

    Attributes:
        outing: what they set out to do.
        told: makes their records of how their trips look then.
    """

    outing: Outing
    told: Callable[[ClosedRound], Sequence[ClientRecord]]


def called_off(playing: Playing, number: int) -> list[ClientRecord]:
    """Who is on the way when the last round has closed: late, and charged for what it did until then."""
    return [
        replace(
            as_it_went(landing),
            round=number,
            staleness=playing.version - landing.departure.version,
            outcome="late",
            message="",
            loss=None,
        )
        for landing in playing.book.under_way.call_off()
    ]


def as_it_went(landing: Landing) -> ClientRecord:
    """The record of a trip that is over, in the round it was asked in."""
    record, closed = landing.departure.record, landing.closed
    if closed is None:
        return record
    outcome = closed.outcomes[0]
    return replace(
        record,
        outcome=outcome,
        message=record.message if outcome == "oom" else short_of_charge(closed, 0),
        virtual_seconds=float(closed.client_seconds[0]),
        up_bytes=int(closed.up_bytes[0]),
        down_bytes=record.down_bytes if closed.received[0] else int(closed.down_bytes[0]),
        provision_bytes=int(closed.provision_bytes[0]),
        joules=float(closed.joules[0]),
        waiting_seconds=float(closed.waiting_seconds[0]),
        boundary_up_bytes=int(closed.boundary_up_bytes[0]),
        boundary_down_bytes=int(closed.boundary_down_bytes[0]),
        num_messages=int(closed.num_messages[0]),
        receive_seconds=float(closed.receive_seconds[0]),
        compute_seconds=float(closed.compute_seconds[0]),
        send_seconds=float(closed.send_seconds[0]),
    )


@dataclass(slots=True)
class _Step:
    """A round as it goes on.

    Attributes:
        landed: records in the order in which their clients landed.
        buffer: those of them whose updates count.
        refills: how often the policy was asked for clients.
    """

    playing: Playing
    number: int
    begun: float = field(init=False)
    landed: list[ClientRecord] = field(default_factory=list)
    buffer: list[Departure] = field(default_factory=list)
    refills: int = 0

    def __post_init__(self) -> None:
        self.begun = self.playing.book.under_way.now_seconds

    @property
    def full(self) -> bool:
        """Whether the goal is reached."""
        goal = self.playing.scene.pace.goal
        return goal is not None and len(self.buffer) >= goal

    def land(self) -> bool:
        """The next trip's end, if the round does not close before it, or for want of one."""
        scene, way, pace = self.playing.scene, self.playing.book.under_way, self.playing.scene.pace
        following = way.next_end(scene.batteries)
        if following is None:
            return False
        if pace.deadline_seconds is not None and self.buffer:
            closes = self.begun + pace.deadline_seconds
            if following > closes:
                way.now_seconds = max(way.now_seconds, closes)
                return False
        landing = way.land(scene.batteries)
        self._keep_charge(landing)
        departure = landing.departure
        behind = self.playing.version - departure.version
        record = replace(as_it_went(landing), round=self.number, staleness=behind)
        if record.outcome == "ok" and pace.max_staleness is not None and behind > pace.max_staleness:
            record = replace(record, outcome="late", message=f"it was {behind} versions behind")
        if record.outcome == "ok":
            self.buffer.append(departure)
        self.landed.append(record)
        return True

    def _keep_charge(self, landing: Landing) -> None:
        """What a trip left in its client's battery, where it was not known as it set out."""
        book, batteries, closed = self.playing.book, self.playing.scene.batteries, landing.closed
        if batteries is None or closed is None or closed.charge_joules is None:
            return
        ends = landing.departure.start_seconds + closed.client_seconds
        book.charges.leave(batteries, landing.departure.trip.client_ids, closed.charge_joules, ends)

    def fill(self) -> None:
        """Ask clients for the free places, before the time moves on."""
        way, scene = self.playing.book.under_way, self.playing.scene
        following = way.next_end(scene.batteries)
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
        way, scene = self.playing.book.under_way, self.playing.scene
        if scene.presence.sessions is None and scene.batteries is None:
            return True
        idle = np.setdiff1d(np.arange(scene.num_clients), busy)
        opens = self._readiness().opens(idle, way.now_seconds)
        if opens > way.now_seconds and (len(way) or np.isinf(opens)):
            return False
        way.now_seconds = opens
        return True

    def _ask(self, busy: Ints, free: int) -> None:
        playing, number = self.playing, self.number
        scene, now = playing.scene, playing.book.under_way.now_seconds
        ready = self._readiness()
        view = self._view(ready, busy, free)
        menu = ask_menu(scene.policy, view)
        view = replace(view, offers_of=lambda ids: price_menu(menu, ready.cohort(ids, now), ready.pricing))
        chosen, state = ask_selection(scene.policy, view, playing.book.policy_state)
        chosen = chosen[view.may_be_asked(chosen)]
        if len(chosen) > free:
            raise PolicyError(
                f"select chose {len(chosen)} clients at second {now:g} of round {number}, and "
                f"{free} more may be at work; choose at most view.clients_per_round."
            )
        playing.book.policy_state = state
        if not len(chosen):
            return
        cohort = ready.cohort(np.sort(chosen), now)
        offers = price_menu(menu, cohort, ready.pricing)
        schedule = decide(scene.policy, cohort, offers, state, ready.pricing)
        playing.book.policy_state = schedule.state
        self._set_out(schedule, playing.leaving(cohort, schedule, now))

    def _set_out(self, schedule: Schedule, leaving: Leaving) -> None:
        """Their trips begin, as they will be if nobody calls them off or comes."""
        scene, book, begins = self.playing.scene, self.playing.book, leaving.outing.begins
        trips = replace(trips_of(scene, leaving.outing), rode=book.under_way.beside(scene.server))
        # Everybody goes to the own end; the pace of the run says in which round that is.
        closed = close_on_clock(scene, book.holdings, book.charges, leaving.outing, Pace(), trips)
        given = zip(schedule.decision.assignments, schedule.shares, strict=True)
        shares = [share for assignment, share in given if assignment is not None]
        for i, record in enumerate(leaving.told(closed)):
            departure = Departure(
                version=self.playing.version,
                start_seconds=begins,
                end_seconds=begins + float(closed.client_seconds[i]),
                leave_seconds=float(closed.leave_seconds[i]),
                trip=trips.take(np.array([i])),
                share=shares[i],
                record=record,
            )
            book.under_way.depart(departure)

    def _readiness(self) -> Readiness:
        playing, number = self.playing, self.number
        pricing = replace(playing.pricing(number), aboard=playing.book.under_way.shares)
        return Readiness(scene=playing.scene, number=number, charges=playing.book.charges, pricing=pricing)

    def _view(self, ready: Readiness, busy: Ints, free: int) -> View:
        view = view_of(ready, self.playing.history(), self.playing.book.under_way.now_seconds)
        seed = view.seed
        if self.refills:
            seed = derive_seed(self.playing.scene.config.seed, "selection", self.number, self.refills)

        def idle(ids: Ints) -> Bools:
            return view.may_be_asked(ids) & ~np.isin(ids, busy)

        return replace(
            view,
            seed=seed,
            clients_per_round=free,
            may_be_asked=idle,
            is_online=lambda ids: view.is_online(ids) & ~np.isin(ids, busy),
        )
