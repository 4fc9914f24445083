"""Who rides a server while rounds overlap: trips whose ends lie with whoever sets out meanwhile.

Nobody who comes later changes what was before, so the next end alone is certain, until somebody comes: it is
found by running a copy of the sweeps ahead. What a trip came to is told as it ends. Moments are virtual
seconds from the run's start.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedray.battery import Batteries, Drain
from fedray.clock import ClosedRound, close_trip, deadline_at, empty_seconds
from fedray.policy import Pace
from fedray.sweeping import Passenger, Sweeps
from fedray.timetable import Timetable, Travellers, passengers_of, table_of
from fedray.trips import Middle, Rode, Trips
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class RiddenTrip:
    """One client's trip under a cut.

    Attributes:
        begins: when it set out.
        trip: of the client alone.
        leave_seconds: after which it leaves, done or not; infinity if it stays.
        charge_joules: in its battery as it set out; None on mains.
        client_id: whose.
        stops_seconds: after which it is off the sweeps, done or not: who runs out of memory never boards.
    """

    begins: float
    trip: Trips
    leave_seconds: float
    charge_joules: float | None = None
    client_id: int = field(init=False)
    stops_seconds: float = field(init=False)
    _send_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        # Plain numbers: these are asked of everybody at every end.
        trip, stops = self.trip, self.leave_seconds
        if not trip.fits[0]:
            stops = min(stops, float(trip.receive_seconds[0]))
        object.__setattr__(self, "client_id", int(trip.client_ids[0]))
        object.__setattr__(self, "stops_seconds", stops)
        object.__setattr__(self, "_send_seconds", float(trip.send_seconds[0]))

    def travellers(self) -> Travellers:
        """The client on the way to its first step, in seconds since it set out."""
        assert self.trip.riders is not None, "a ride has steps"
        return Travellers(
            client_ids=self.trip.client_ids,
            riders=self.trip.riders,
            device=self.trip.device,
            start_seconds=self.trip.receive_seconds,
            leave_seconds=np.array([self.stops_seconds]),
        )

    def end_seconds(self, passenger: Passenger) -> float:
        """When it ends, as far as the sweeps have told; infinity for not yet known."""
        arrival = (passenger.finish_seconds - self.begins) + self._send_seconds
        return self.begins + min(self.stops_seconds, arrival)

    def until(self, table: Timetable, batteries: Batteries | None) -> Trips:
        """The trip with its rides as far as they are known."""
        drain = None
        if batteries is not None and self.charge_joules is not None:
            drain = Drain(
                batteries=batteries,
                client_ids=self.trip.client_ids,
                begins_seconds=self.begins,
                charge_joules=np.array([self.charge_joules]),
            )
        return replace(self.trip, rode=lambda _: table, drain=drain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The next trip that ends; ``closed`` is what it came to, of its client alone."""

    end_seconds: float
    client_id: int
    place: int
    closed: ClosedRound


@dataclass(slots=True, kw_only=True)
class InTransit:
    """The sweeps of a run, and who is on its way through them, by place.

    Attributes:
        num_came: so far; the next one's place.
        counted_seconds: until when the server's seconds have been counted.
    """

    sweeps: Sweeps
    rides: dict[int, RiddenTrip] = field(default_factory=dict)
    num_came: int = 0
    counted_seconds: float = 0.0
    _next: Ending | None = None

    @staticmethod
    def of(server: VirtualServer) -> "InTransit":
        """Nobody yet."""
        return InTransit(sweeps=Sweeps(server=server))

    def beside(self, begins: float) -> Rode:
        """What riders who set out at a moment would come to if nobody came after them."""

        def rode(who: Travellers) -> Timetable:
            ahead = self._at(begins).copied()
            newcomers = passengers_of(who, begins)
            for place, one in enumerate(newcomers, start=self.num_came):
                ahead.come(place, one)
            ahead.through()
            return table_of(newcomers, since_seconds=begins)

        return rode

    def come(self, ride: RiddenTrip) -> None:
        """One more sets out."""
        (passenger,) = passengers_of(ride.travellers(), ride.begins)
        self._at(ride.begins).come(self.num_came, passenger)
        self.rides[self.num_came] = ride
        self.num_came += 1
        self._next = None

    def next_ending(self, batteries: Batteries | None) -> Ending | None:
        """The next end if nobody comes before it, of equal ones the smaller client id's; None of nobody."""
        if self._next is None and self.rides:
            self._next = self._found(batteries)
        return self._next

    def land(self, ending: Ending) -> None:
        """That one is gone."""
        self._at(ending.end_seconds).go(ending.place, ending.end_seconds)
        del self.rides[ending.place]
        self._next = None

    def until(self, now: float) -> Iterator[tuple[int, ClosedRound]]:
        """Everybody as it would be called off now, by client id."""
        ahead = self._at(now).copied()
        while ahead.next_moment() <= now:
            ahead.happen()
        for place, ride in self.rides.items():
            trip = ride.until(_rode(ahead, place, ride), None)
            yield ride.client_id, close_trip(trip, deadline_at(now - ride.begins), ride.leave_seconds)

    def count(self, now: float) -> float:
        """How long the server swept since it was counted last."""
        since, self.counted_seconds = self.counted_seconds, now
        return self._at(now).count(since, now)

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back, but for the rides."""
        return {
            "sweeps": self.sweeps.facts(),
            "places": [[ride.client_id, place] for place, ride in self.rides.items()],
            "num_came": self.num_came,
            "counted_seconds": self.counted_seconds,
        }

    @staticmethod
    def from_facts(facts: Mapping[str, Any], rides: Mapping[int, RiddenTrip]) -> "InTransit":
        """What was written; the rides by client id."""
        return InTransit(
            sweeps=Sweeps.from_facts(facts["sweeps"]),
            rides={place: rides[client] for client, place in facts["places"]},
            num_came=facts["num_came"],
            counted_seconds=facts["counted_seconds"],
        )

    def _at(self, moment: float) -> Sweeps:
        """The sweeps as they are before anything happens at a moment, at which somebody may come."""
        self.sweeps.before(moment)
        return self.sweeps

    def _found(self, batteries: Batteries | None) -> Ending:
        ahead = self.sweeps.copied()
        first = self._first(ahead, self.rides)
        # Of equal moments the last event still counts: it may be the end of a smaller client id.
        while ahead.next_moment() <= first[0]:
            done = ahead.happen()
            if done:
                first = min(first, self._first(ahead, done))
        empties = self._empties(ahead, first[0], batteries)
        ends = [(ride.begins + empties[place], ride.client_id, place)
                for place, ride in self.rides.items() if place in empties]  # fmt: skip
        end, client, place = min([first, *ends])
        ride = self.rides[place]
        trip = ride.until(_rode(ahead, place, ride), batteries)
        closed = close_trip(trip, Pace(), ride.leave_seconds, empties.get(place, np.inf))
        return Ending(end_seconds=end, client_id=client, place=place, closed=closed)

    def _first(self, ahead: Sweeps, places: Iterable[int]) -> tuple[float, int, int]:
        """Of these the first that ends, as far as is known: when, whose and its place."""
        return min(
            (self.rides[place].end_seconds(ahead.passengers[place]), self.rides[place].client_id, place)
            for place in places
        )

    def _empties(self, ahead: Sweeps, until: float, batteries: Batteries | None) -> dict[int, float]:
        """After how long each battery is empty that is so by a moment to which the sweeps are known."""
        found = {}
        for place, ride in self.rides.items():
            if batteries is None or ride.charge_joules is None:
                continue
            trip = ride.until(_rode(ahead, place, ride), batteries)
            leave = np.array([min(ride.leave_seconds, until - ride.begins)])
            empty = float(empty_seconds(trip, Middle(trip, leave), leave)[0])
            if np.isfinite(empty):
                found[place] = empty
        return found


def _rode(sweeps: Sweeps, place: int, ride: RiddenTrip) -> Timetable:
    return table_of([sweeps.passengers[place]], since_seconds=ride.begins)
