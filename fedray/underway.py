"""Clients on their way while rounds close without them, and the versions of the state they train from."""

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedray.adapter import GlobalState
from fedray.record import ClientRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One client that was given something.

    Attributes:
        version: of the state that it was sent.
        start_seconds: virtual, from the run's start.
        end_seconds: when its update arrives, or it drops out or runs out of memory.
        compute_seconds: of its own arithmetic in all steps.
        provision_bytes: that were sent to it in all.
        record: of the round it was asked in, as it will be if nobody calls it off.
    """

    version: int
    start_seconds: float
    end_seconds: float
    compute_seconds: float
    provision_bytes: int
    record: ClientRecord

    @property
    def client_id(self) -> int:
        """Whose."""
        return self.record.client_id


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
    # Of equal moments the smaller client id arrives first.
    _queue: list[tuple[float, int]] = field(default_factory=list)

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

    def depart(self, departure: Departure) -> None:
        """One more sets out; a client is on its way once at most."""
        assert departure.client_id not in self._departures, "a client is on its way already"
        self._departures[departure.client_id] = departure
        heapq.heappush(self._queue, (departure.end_seconds, departure.client_id))

    def next_end(self) -> float | None:
        """When the next trip ends; None if nobody is on the way."""
        return self._queue[0][0] if self._queue else None

    def land(self) -> Departure:
        """The trip that ends next, off the queue; the time is then its end."""
        end, client = heapq.heappop(self._queue)
        self.now_seconds = max(self.now_seconds, end)
        return self._departures.pop(client)

    def keep(self, state: GlobalState) -> None:
        """Keep a state that is about to be followed; of all kept those alone that somebody trains from."""
        known = {**self.versions, state.version: replace(state, moments={})}
        used = {departure.version for departure in self._departures.values()}
        self.versions = {version: kept for version, kept in known.items() if version in used}

    def call_off(self) -> list[Departure]:
        """Everybody who is on the way, who then is no more; by client."""
        ended = self.departures
        self._departures, self._queue, self.versions = {}, [], {}
        return ended

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back, but for the states."""
        return {"now_seconds": self.now_seconds, "departures": [asdict(one) for one in self.departures]}

    @staticmethod
    def from_facts(facts: Mapping[str, Any], versions: dict[int, GlobalState]) -> "UnderWay":
        """The queue that was written."""
        way = UnderWay(now_seconds=facts["now_seconds"], versions=versions)
        for one in facts["departures"]:
            way.depart(Departure(**{**one, "record": ClientRecord(**one["record"])}))
        return way
