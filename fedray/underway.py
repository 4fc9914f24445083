"""Clients on their way while rounds close without them, and the versions of the state they train from."""

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedray.adapter import GlobalState
from fedray.battery import Batteries
from fedray.clock import ClosedRound, close_trip, deadline_at
from fedray.cost import ServerShare
from fedray.in_transit import InTransit, RiddenTrip
from fedray.record import ClientRecord
from fedray.trips import Rode, Trips
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One client that was given something.

    Attributes:
        version: of the state that it was sent.
        start_seconds: virtual, from the run's start.
        end_seconds: when its update arrives, or it drops out or runs out of memory. Of one under a cut, as it
            looked when it set out: whoever comes while it rides changes it.
        leave_seconds: after its start, at which it leaves, done or not; infinity if it stays.
        trip: of the client alone.
        share: what it takes of the server; None for a whole model.
        record: of the round it was asked in, as it looked when it set out.
    """

    version: int
    start_seconds: float
    end_seconds: float
    leave_seconds: float
    trip: Trips
    share: ServerShare | None
    record: ClientRecord

    @property
    def client_id(self) -> int:
        """Whose."""
        return self.record.client_id

    @property
    def ride(self) -> RiddenTrip | None:
        """Its way through the server's sweeps; None for a whole model."""
        if self.share is None:
            return None
        return RiddenTrip(
            begins=self.start_seconds,
            trip=self.trip,
            leave_seconds=self.leave_seconds,
            charge_joules=self.record.charge_joules,
        )

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back."""
        return {**{name: getattr(self, name) for name in _NUMBERS}, "trip": self.trip.facts(),
                "share": self.share and asdict(self.share), "record": asdict(self.record)}  # fmt: skip

    @staticmethod
    def from_facts(facts: Mapping[str, Any]) -> "Departure":
        """The departure that was written."""
        return Departure(
            trip=Trips.from_facts(facts["trip"]),
            share=facts["share"] and ServerShare(**facts["share"]),
            record=ClientRecord(**facts["record"]),
            **{name: facts[name] for name in _NUMBERS},
        )


_NUMBERS = ("version", "start_seconds", "end_seconds", "leave_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A trip that is over, by itself or called off; ``closed`` is what it came to, of its client alone.

    It is None of a whole model's that went to its own end: its record says it since it set out.
    """

    departure: Departure
    closed: ClosedRound | None


@dataclass(slots=True, kw_only=True)
class UnderWay:
    """The event queue of a run whose rounds overlap.

    Attributes:
        now_seconds: virtual, from the run's start.
        versions: of the state by number, older than the newest, that somebody trains from.
    """

    now_seconds: float = 0.0
    versions: dict[int, GlobalState] = field(default_factory=dict)
    _departures: dict[int, Departure] = field(default_factory=dict)
    # Of whole models; of equal moments the smaller client id arrives first.
    _queue: list[tuple[float, int]] = field(default_factory=list)
    _in_transit: InTransit | None = None  # under cuts

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._departures)

    @property
    def client_ids(self) -> list[int]:
        """Who, ascending."""
        return sorted(self._departures)

    @property
    def departures(self) -> list[Departure]:
        """All of them, by client."""
        return [self._departures[client] for client in self.client_ids]

    @property
    def shares(self) -> list[ServerShare]:
        """What those under cuts take of the server."""
        return [one.share for one in self.departures if one.share is not None]

    def beside(self, server: VirtualServer | None) -> Rode | None:
        """What riders who set out now would come to beside those on the way; None without a server."""
        if server is None:
            return None
        if self._in_transit is None:
            self._in_transit = InTransit.of(server)
        return self._in_transit.beside(self.now_seconds)

    def depart(self, departure: Departure) -> None:
        """One more sets out; a client is on its way once at most."""
        assert departure.client_id not in self._departures, "a client is on its way already"
        self._departures[departure.client_id] = departure
        if departure.ride is None:
            heapq.heappush(self._queue, (departure.end_seconds, departure.client_id))
        else:
            assert self._in_transit is not None, "a ride was told beside whom it goes"
            self._in_transit.come(departure.ride)

    def next_end(self, batteries: Batteries | None = None) -> float | None:
        """When the next trip ends if nobody sets out before; None if nobody is on the way."""
        following = self._next(batteries)
        return None if following is None else following[0]

    def land(self, batteries: Batteries | None = None) -> Landing:
        """The trip that ends next; the time is then its end."""
        following = self._next(batteries)
        assert following is not None, "somebody is on the way"
        end, client = following
        self.now_seconds = max(self.now_seconds, end)
        closed = None
        if self._queue and self._queue[0] == following:
            heapq.heappop(self._queue)
        else:
            closed = self._landed_in_transit(batteries)
        return Landing(departure=self._departures.pop(client), closed=closed)

    def swept_seconds(self) -> float:
        """How long the server swept until now, since this was asked last."""
        return 0.0 if self._in_transit is None else self._in_transit.count(self.now_seconds)

    def keep(self, state: GlobalState) -> None:
        """Keep a state that is about to be followed; of all kept those alone that somebody trains from."""
        known = {**self.versions, state.version: replace(state, moments={})}
        used = {departure.version for departure in self._departures.values()}
        self.versions = {version: kept for version, kept in known.items() if version in used}

    def call_off(self) -> list[Landing]:
        """Everybody who is on the way, who then is no more; by client."""
        rode = {} if self._in_transit is None else dict(self._in_transit.until(self.now_seconds))
        ended = []
        for one in self.departures:
            closed = rode.get(one.client_id)
            if closed is None:
                pace = deadline_at(self.now_seconds - one.start_seconds)
                closed = close_trip(one.trip, pace, one.leave_seconds)
            ended.append(Landing(departure=one, closed=closed))
        self._departures, self._queue, self._in_transit, self.versions = {}, [], None, {}
        return ended

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back, but for the states."""
        return {
            "now_seconds": self.now_seconds,
            "departures": [one.facts() for one in self.departures],
            "in_transit": self._in_transit and self._in_transit.facts(),
        }

    @staticmethod
    def from_facts(facts: Mapping[str, Any], versions: dict[int, GlobalState]) -> "UnderWay":
        """The queue that was written."""
        way = UnderWay(now_seconds=facts["now_seconds"], versions=versions)
        rides = {}
        for one in map(Departure.from_facts, facts["departures"]):
            way._departures[one.client_id] = one
            if one.ride is None:
                heapq.heappush(way._queue, (one.end_seconds, one.client_id))
            else:
                rides[one.client_id] = one.ride
        if facts["in_transit"] is not None:
            way._in_transit = InTransit.from_facts(facts["in_transit"], rides)
        return way

    def _next(self, batteries: Batteries | None) -> tuple[float, int] | None:
        """The next end, and whose."""
        riding = None if self._in_transit is None else self._in_transit.next_ending(batteries)
        ends = [*self._queue[:1], *([] if riding is None else [(riding.end_seconds, riding.client_id)])]
        return min(ends, default=None)

    def _landed_in_transit(self, batteries: Batteries | None) -> ClosedRound:
        assert self._in_transit is not None
        ending = self._in_transit.next_ending(batteries)
        assert ending is not None
        self._in_transit.land(ending)
        return ending.closed
