"""The virtual server's sweeps: when each leaves and with whom, worked out event by event, without a seed.

A client computes and sends a step, boards, and waits. A sweep leaves when the server is free and enough
wait; who misses it takes the next. It goes up and comes down, half of its seconds each. From the top tails
get what they read, and the sweep waits for the last of those aboard before it comes down for everybody.
Black-box clients aboard go up before the others, and have their losses from there; their ride ends so.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from fedray.cost import Device, Floats, Ints
from fedray.riders import Riders
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTime:
    """One sweep: its clients by position. At the top it stands still while tails are waited for.

    With black-box clients alone it ends at the top.
    """

    start_seconds: float
    top_seconds: float
    down_seconds: float
    end_seconds: float
    aboard: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """A round's sweeps.

    Attributes:
        sweeps: in order.
        step_ends: of each client the ends of the sweeps that served its steps, one array a client;
            ``step_tops`` when these were at the top. For a black-box client it ends where its loss leaves.
        finish_seconds: when each client's last step is over, [clients]: its start for one without steps,
            infinity for one that left before.
    """

    sweeps: tuple[SweepTime, ...]
    step_ends: tuple[Floats, ...]
    step_tops: tuple[Floats, ...]
    finish_seconds: Floats

    def busy_seconds(self, until: float) -> float:
        """How long the server swept until then."""
        halves = [
            half
            for sweep in self.sweeps
            for half in (
                (sweep.start_seconds, sweep.top_seconds),
                (sweep.down_seconds, sweep.end_seconds),
            )
        ]
        return sum(max(min(until, end) - start, 0.0) for start, end in halves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Travellers:
    """Who comes to a server in a round; arrays are [clients].

    Attributes:
        client_ids: of equal boardings in a queue the smaller id goes first.
        start_seconds: when each begins its first step.
        leave_seconds: when each leaves the round, done or not; infinity for who stays.
    """

    client_ids: Ints
    riders: Riders
    device: Device
    start_seconds: Floats
    leave_seconds: Floats


def timetable(server: VirtualServer, travellers: Travellers) -> Timetable:
    """Runs a round's sweeps from second 0 to the last step of the last client."""
    run = _Run(server, travellers)
    run.through()
    return Timetable(
        sweeps=tuple(run.sweeps),
        step_ends=tuple(np.array(ends, np.float64) for ends in run.step_ends),
        step_tops=tuple(np.array(tops, np.float64) for tops in run.step_tops),
        finish_seconds=np.array(run.finish, np.float64),
    )


class _Kind(IntEnum):
    """Of events at one moment those come first that make room."""

    LEAVE = 0
    SWEEP_ENDS = 1
    LOOKED = 2
    AT_THE_TOP = 3
    TURNED = 4
    BOARD = 5
    WINDOW_ENDS = 6


@dataclass(frozen=True, slots=True)
class _Pace:
    """One client's seconds, as plain numbers."""

    num_steps: int
    num_fresh: int
    fresh_before: float  # from a fresh step's start to boarding
    later_before: float
    fresh_turn: float  # from the top of a fresh step's sweep, through the tail, to the server again
    later_turn: float
    after: float  # from a sweep's end to the step's, where the next one waits for it
    alone: float  # from one fresh step's start to the next, where nothing is waited for
    waits: bool
    turns: bool
    flops: int
    first_block: int
    blind: bool


@dataclass(slots=True)
class _UnderWay:
    """A sweep that is not over; ``awaited`` are those whose tails it waits for at the top."""

    start: float
    half: float
    aboard: tuple[int, ...]
    awaited: set[int]
    top: float = np.inf
    down: float = np.inf


@dataclass(slots=True)
class _Run:
    """The state between two events."""

    server: VirtualServer
    who: Travellers
    sweeps: list[SweepTime] = field(default_factory=list)
    step_ends: list[list[float]] = field(default_factory=list)
    step_tops: list[list[float]] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    _paces: list[_Pace] = field(default_factory=list)
    _events: list[tuple[float, _Kind, int]] = field(default_factory=list)
    _waiting: dict[int, float] = field(default_factory=dict)  # boarded when, by client
    _staying: set[int] = field(default_factory=set)  # with steps that no sweep has served
    _sweep: _UnderWay | None = None

    def __post_init__(self) -> None:
        self._paces = _paces(self.who)
        self.step_ends, self.step_tops = [[] for _ in self._paces], [[] for _ in self._paces]
        for client, pace in enumerate(self._paces):
            start = float(self.who.start_seconds[client])
            self.finish.append(np.inf if pace.num_steps else start)
            if pace.num_steps:
                self._staying.add(client)
                self._add(start + pace.fresh_before, _Kind.BOARD, client)
                self._add(float(self.who.leave_seconds[client]), _Kind.LEAVE, client)

    def through(self) -> None:
        """Until nothing happens any more."""
        while self._events:
            now = self._events[0][0]
            while self._events and self._events[0][0] <= now:
                self._happens(now, *heapq.heappop(self._events)[1:])
            self._come_down_if_due(now)
            if self._sweep is None and self._waiting:
                self._leave_if_due(now)

    def _add(self, seconds: float, kind: _Kind, client: int) -> None:
        if seconds < np.inf:
            heapq.heappush(self._events, (seconds, kind, client))

    def _happens(self, now: float, kind: _Kind, client: int) -> None:
        match kind:
            case _Kind.SWEEP_ENDS:
                self._end(now)
            case _Kind.LOOKED:
                self._look(now)
            case _Kind.AT_THE_TOP:
                self._turn(now)
            case _Kind.TURNED if self._sweep is not None:
                self._sweep.awaited.discard(client)
            case _Kind.LEAVE:
                self._staying.discard(client)
                self._waiting.pop(client, None)
                if self._sweep is not None:
                    self._sweep.awaited.discard(client)
            case _Kind.BOARD if client in self._staying:
                self._waiting[client] = now

    def _look(self, now: float) -> None:
        """Those who go up alone are at the top: their losses leave."""
        assert self._sweep is not None
        for client in self._sweep.aboard:
            if self._paces[client].blind and client in self._staying:
                self.step_tops[client].append(now)
                self._served(client, now)

    def _turn(self, now: float) -> None:
        """The sweep under way is at the top: what leaves for tails leaves."""
        assert self._sweep is not None
        self._sweep.top = now
        for client in self._sweep.aboard:
            pace, tops = self._paces[client], self.step_tops[client]
            if client in self._staying and not pace.blind:
                is_fresh = len(tops) < pace.num_fresh
                tops.append(now)
                if pace.turns:
                    self._add(now + (pace.fresh_turn if is_fresh else pace.later_turn), _Kind.TURNED, client)

    def _come_down_if_due(self, now: float) -> None:
        sweep = self._sweep
        if sweep is not None and sweep.top <= now and sweep.down == np.inf and not sweep.awaited:
            sweep.down = now
            self._add(now + sweep.half, _Kind.SWEEP_ENDS, -1)

    def _end(self, now: float) -> None:
        sweep, self._sweep = self._sweep, None
        assert sweep is not None
        self.sweeps.append(
            SweepTime(
                start_seconds=sweep.start,
                top_seconds=sweep.top,
                down_seconds=sweep.down,
                end_seconds=now,
                aboard=sweep.aboard,
            )
        )
        for rider in sweep.aboard:
            if not self._paces[rider].blind:
                self._served(rider, now)

    def _leave_if_due(self, now: float) -> None:
        first = min(self._waiting.values())
        ends = first + self.server.window_seconds
        enough = min(self.server.min_riders, len(self._staying))
        if self.server.order == "sweep" and len(self._waiting) < enough and now < ends:
            self._add(ends, _Kind.WINDOW_ENDS, -1)
            return
        aboard = sorted(self._waiting)
        if self.server.order == "queue":
            ids = self.who.client_ids
            aboard = [min(aboard, key=lambda client: (self._waiting[client], ids[client]))]
        blind = [client for client in aboard if self._paces[client].blind]
        others = [client for client in aboard if not self._paces[client].blind]
        looking, half = self._way_seconds(blind, 1), self._way_seconds(others, 2)
        for client in aboard:
            del self._waiting[client]
        turning = {client for client in aboard if self._paces[client].turns}
        self._sweep = _UnderWay(start=now, half=half, aboard=tuple(aboard), awaited=turning)
        if blind:
            self._add(now + looking, _Kind.LOOKED, -1)
        self._add(now + looking + half, _Kind.AT_THE_TOP, -1)

    def _way_seconds(self, clients: Sequence[int], num_ways: int) -> float:
        """What one of their ways through the blocks takes, with their arithmetic spread over so many."""
        if not clients:
            return 0.0
        flops = sum(self._paces[client].flops for client in clients)
        lowest = min(self._paces[client].first_block for client in clients)
        return self.server.way_seconds(flops / num_ways, lowest)

    def _served(self, client: int, now: float) -> None:
        if client not in self._staying:
            return
        pace, ends = self._paces[client], self.step_ends[client]
        ends.append(now)
        start = float(self.who.start_seconds[client])
        if len(ends) == pace.num_steps:
            self._staying.discard(client)
            own_end = now + pace.after if pace.waits else start + pace.num_fresh * pace.alone
            self.finish[client] = max(now, own_end)
            return
        is_fresh = len(ends) < pace.num_fresh
        if pace.waits:
            board = now + pace.after + (pace.fresh_before if is_fresh else pace.later_before)
        else:
            sent = min(len(ends), pace.num_fresh - 1)
            board = max(now, start + sent * pace.alone + pace.fresh_before)
        self._add(board, _Kind.BOARD, client)


def _paces(who: Travellers) -> list[_Pace]:
    riders, device = who.riders, who.device
    first_up = riders.first_up.up_seconds(device)
    to_the_tail = riders.turn_down.down_seconds(device) + riders.turn_seconds
    columns = (
        riders.num_steps,
        riders.num_fresh,
        riders.forward_seconds + first_up,
        riders.later_up.up_seconds(device),
        to_the_tail + riders.fresh_turn_up.up_seconds(device),
        to_the_tail + riders.later_turn_up.up_seconds(device),
        riders.last_down.down_seconds(device) + riders.backward_seconds,
        riders.step_seconds + first_up,
        riders.waits,
        riders.turns,
        riders.server_flops,
        riders.first_block,
        riders.blind > 0,
    )
    return [_Pace(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
