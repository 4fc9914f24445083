"""The event loop of a virtual server's sweeps: when each leaves and with whom, without a seed.

A client computes and sends a step, boards, and waits. A sweep leaves when the server is free and enough
wait; who misses it takes the next. It goes up and comes down, half of its seconds each. From the top tails
get what they read, and the sweep waits for the last of those aboard before it comes down for everybody.
Black-box clients aboard go up before the others, and have their losses from there; their ride ends so.

Clients may come while others ride: nothing of them reaches back before the moment at which they do.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np

from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTime:
    """One sweep: its clients by place. At the top it stands still while tails are waited for.

    With black-box clients alone it ends at the top.
    """

    start_seconds: float
    top_seconds: float
    down_seconds: float
    end_seconds: float
    aboard: tuple[int, ...]


def swept_seconds(sweeps: Sequence[SweepTime], since: float, until: float) -> float:
    """How long the server swept between two moments."""
    halves = [
        half
        for sweep in sweeps
        for half in (
            (sweep.start_seconds, sweep.top_seconds),
            (sweep.down_seconds, sweep.end_seconds),
        )
    ]
    return sum(max(min(until, end) - max(start, since), 0.0) for start, end in halves)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """One client's seconds in a step, as plain numbers.

    Attributes:
        fresh_before: from a fresh step's start to boarding.
        fresh_turn: from the top of a fresh step's sweep, through the tail, to the server again.
        after: from a sweep's end to the step's, where the next one waits for it.
        alone: from one fresh step's start to the next, where nothing is waited for.
    """

    num_steps: int
    num_fresh: int
    fresh_before: float
    later_before: float
    fresh_turn: float
    later_turn: float
    after: float
    alone: float
    waits: bool
    turns: bool
    flops: int
    first_block: int
    blind: bool


@dataclass(slots=True, kw_only=True)
class Passenger:
    """One client on its way through its steps; moments are the loop's.

    Attributes:
        client_id: of equal boardings in a queue the smaller goes first.
        start_seconds: when it begins its first step.
        leave_seconds: when it leaves, done or not; infinity for who stays.
        tops: when the sweeps that served its steps were at the top; ``ends`` when they ended.
        finish_seconds: when its last step is over; infinity until the last sweep that serves it ends.
    """

    client_id: int
    step: StepSeconds
    start_seconds: float
    leave_seconds: float
    tops: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    finish_seconds: float = np.inf


class _Kind(IntEnum):
    """Of events at one moment those come first that make room."""

    LEAVE = 0
    SWEEP_ENDS = 1
    LOOKED = 2
    AT_THE_TOP = 3
    TURNED = 4
    BOARD = 5
    WINDOW_ENDS = 6


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """One that is not over; it is at the top at ``tops``, and waits there for the tails of ``awaited``."""

    start: float
    tops: float
    half: float
    aboard: tuple[int, ...]
    awaited: set[int]
    down: float = np.inf

    def so_far(self) -> SweepTime:
        """Its halves as far as they are known; one that has not come is at infinity."""
        return SweepTime(
            start_seconds=self.start,
            top_seconds=self.tops,
            down_seconds=self.down,
            end_seconds=self.down + self.half,
            aboard=self.aboard,
        )


@dataclass(slots=True, kw_only=True)
class Sweeps:
    """The state between two events.

    Attributes:
        passengers: by place, a number of its own for each.
        over: the sweeps that are.
    """

    server: VirtualServer
    passengers: dict[int, Passenger] = field(default_factory=dict)
    over: list[SweepTime] = field(default_factory=list)
    _events: list[tuple[float, int, int]] = field(default_factory=list)
    _waiting: dict[int, float] = field(default_factory=dict)  # boarded when, by place
    _staying: set[int] = field(default_factory=set)  # with steps that no sweep has served
    _sweep: _Sweep | None = None
    _done: list[int] = field(default_factory=list)  # at the last moment

    def come(self, place: int, passenger: Passenger) -> None:
        """One more, at a moment that the events so far lie before; a client without steps is done at once."""
        self.passengers[place] = passenger
        if not passenger.step.num_steps:
            passenger.finish_seconds = passenger.start_seconds
            return
        self._staying.add(place)
        self._add(passenger.start_seconds + passenger.step.fresh_before, _Kind.BOARD, place)
        self._add(passenger.leave_seconds, _Kind.LEAVE, place)

    def go(self, place: int, now: float) -> None:
        """This one is gone from now on, done or not."""
        del self.passengers[place]
        # It may have been about to leave long after.
        self._events = [event for event in self._events if event[2] != place]
        heapq.heapify(self._events)
        if place in self._staying:
            # Others may have waited for it, and whether they still do is seen at events alone.
            self._leaves(place)
            self._add(now, _Kind.LEAVE, place)

    def next_moment(self) -> float:
        """Of the next event; infinity if nothing happens any more."""
        return self._events[0][0] if self._events else np.inf

    def happen(self) -> list[int]:
        """All events of the next moment, and what follows from them at once; whose last step is served."""
        now, self._done = self._events[0][0], []
        while self._events and self._events[0][0] <= now:
            self._happens(now, *heapq.heappop(self._events)[1:])
        self._come_down_if_due(now)
        if self._sweep is None and self._waiting:
            self._leave_if_due(now)
        return self._done

    def through(self) -> None:
        """Until nothing happens any more."""
        while self._events:
            self.happen()

    def before(self, moment: float) -> None:
        """All that happens before a moment, at which somebody may yet come."""
        while self.next_moment() < moment:
            self.happen()

    def count(self, since: float, until: float) -> float:
        """How long the server swept between two moments; sweeps that are over by the second are forgotten."""
        under_way = [] if self._sweep is None else [self._sweep.so_far()]
        seconds = swept_seconds([*self.over, *under_way], since, until)
        self.over = [sweep for sweep in self.over if sweep.end_seconds > until]
        return seconds

    def copied(self) -> "Sweeps":
        """The same, to be run ahead; without the sweeps that are over."""
        sweep = self._sweep
        return Sweeps(
            server=self.server,
            passengers={
                place: replace(one, tops=[*one.tops], ends=[*one.ends])
                for place, one in self.passengers.items()
            },
            _events=[*self._events],
            _waiting=dict(self._waiting),
            _staying=set(self._staying),
            _sweep=None if sweep is None else replace(sweep, awaited=set(sweep.awaited)),
        )

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back."""
        sweep = self._sweep
        return {
            "server": asdict(self.server),
            "passengers": [[place, asdict(one)] for place, one in self.passengers.items()],
            "over": [asdict(one) for one in self.over],
            "events": self._events,
            "waiting": [*self._waiting.items()],
            "staying": sorted(self._staying),
            "sweep": None if sweep is None else {**asdict(sweep), "awaited": sorted(sweep.awaited)},
        }

    @staticmethod
    def from_facts(facts: Mapping[str, Any]) -> "Sweeps":
        """The sweeps that were written."""
        server, sweep = facts["server"], facts["sweep"]
        return Sweeps(
            server=VirtualServer(**{**server, "block_bytes": tuple(server["block_bytes"])}),
            passengers={
                place: Passenger(**{**one, "step": StepSeconds(**one["step"])})
                for place, one in facts["passengers"]
            },
            over=[SweepTime(**{**one, "aboard": tuple(one["aboard"])}) for one in facts["over"]],
            _events=[(seconds, kind, place) for seconds, kind, place in facts["events"]],
            _waiting=dict(facts["waiting"]),
            _staying=set(facts["staying"]),
            _sweep=sweep
            and _Sweep(**{**sweep, "aboard": tuple(sweep["aboard"]), "awaited": set(sweep["awaited"])}),
        )

    def _add(self, seconds: float, kind: _Kind, place: int) -> None:
        if seconds < np.inf:
            heapq.heappush(self._events, (seconds, int(kind), place))

    def _happens(self, now: float, kind: int, place: int) -> None:
        match kind:
            case _Kind.SWEEP_ENDS:
                self._end(now)
            case _Kind.LOOKED:
                self._look(now)
            case _Kind.AT_THE_TOP:
                self._turn(now)
            case _Kind.TURNED if self._sweep is not None:
                self._sweep.awaited.discard(place)
            case _Kind.LEAVE:
                self._leaves(place)
            case _Kind.BOARD if place in self._staying:
                self._waiting[place] = now

    def _leaves(self, place: int) -> None:
        self._staying.discard(place)
        self._waiting.pop(place, None)
        if self._sweep is not None:
            self._sweep.awaited.discard(place)

    def _look(self, now: float) -> None:
        """Those who go up alone are at the top: their losses leave."""
        assert self._sweep is not None
        for place in self._sweep.aboard:
            if place in self._staying and self.passengers[place].step.blind:
                self.passengers[place].tops.append(now)
                self._served(place, now)

    def _turn(self, now: float) -> None:
        """The sweep under way is at the top: what leaves for tails leaves."""
        assert self._sweep is not None
        for place in self._sweep.aboard:
            if place in self._staying and not self.passengers[place].step.blind:
                step, tops = self.passengers[place].step, self.passengers[place].tops
                is_fresh = len(tops) < step.num_fresh
                tops.append(now)
                if step.turns:
                    self._add(now + (step.fresh_turn if is_fresh else step.later_turn), _Kind.TURNED, place)

    def _come_down_if_due(self, now: float) -> None:
        sweep = self._sweep
        if sweep is not None and sweep.tops <= now and sweep.down == np.inf and not sweep.awaited:
            sweep.down = now
            self._add(now + sweep.half, _Kind.SWEEP_ENDS, -1)

    def _end(self, now: float) -> None:
        sweep, self._sweep = self._sweep, None
        assert sweep is not None
        self.over.append(
            SweepTime(
                start_seconds=sweep.start,
                top_seconds=sweep.tops,
                down_seconds=sweep.down,
                end_seconds=now,
                aboard=sweep.aboard,
            )
        )
        for place in sweep.aboard:
            if place in self._staying and not self.passengers[place].step.blind:
                self._served(place, now)

    def _leave_if_due(self, now: float) -> None:
        first = min(self._waiting.values())
        ends = first + self.server.window_seconds
        enough = min(self.server.min_riders, len(self._staying))
        if self.server.order == "sweep" and len(self._waiting) < enough and now < ends:
            self._add(ends, _Kind.WINDOW_ENDS, -1)
            return
        aboard = sorted(self._waiting)
        who = self.passengers
        if self.server.order == "queue":
            aboard = [min(aboard, key=lambda place: (self._waiting[place], who[place].client_id))]
        blind = [who[place].step for place in aboard if who[place].step.blind]
        others = [who[place].step for place in aboard if not who[place].step.blind]
        looking, half = self._way_seconds(blind, 1), self._way_seconds(others, 2)
        for place in aboard:
            del self._waiting[place]
        turning = {place for place in aboard if who[place].step.turns}
        tops = now + looking + half
        self._sweep = _Sweep(start=now, tops=tops, half=half, aboard=tuple(aboard), awaited=turning)
        if blind:
            self._add(now + looking, _Kind.LOOKED, -1)
        self._add(tops, _Kind.AT_THE_TOP, -1)

    def _way_seconds(self, steps: Sequence[StepSeconds], num_ways: int) -> float:
        """What one of their ways through the blocks takes, with their arithmetic spread over so many."""
        if not steps:
            return 0.0
        flops, lowest = sum(step.flops for step in steps), min(step.first_block for step in steps)
        return self.server.way_seconds(flops / num_ways, lowest)

    def _served(self, place: int, now: float) -> None:
        one = self.passengers[place]
        step, ends, start = one.step, one.ends, one.start_seconds
        ends.append(now)
        if len(ends) == step.num_steps:
            self._staying.discard(place)
            self._done.append(place)
            own_end = now + step.after if step.waits else start + step.num_fresh * step.alone
            one.finish_seconds = max(now, own_end)
            return
        is_fresh = len(ends) < step.num_fresh
        if step.waits:
            board = now + step.after + (step.fresh_before if is_fresh else step.later_before)
        else:
            sent = min(len(ends), step.num_fresh - 1)
            board = max(now, start + sent * step.alone + step.fresh_before)
        self._add(board, _Kind.BOARD, place)
