"""Batteries: what work takes out of them, what charging gives them, and how full they were left.

While a battery is charging its device works off the mains: the battery gains its charge watts up to its
capacity, whatever the device does. Otherwise what the work takes comes out of it; without work it loses
nothing. Moments are virtual seconds from the run's start, and a device on mains has an infinite battery.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.cost import Floats, Ints
from fedray.sessions import Sessions

Bools = NDArray[np.bool_]
# Halvings of a stretch of time in which a battery runs empty; a double has no more.
_HALVINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Batteries:
    """What the clients' batteries are, and when each is charging; arrays are [clients] of the fleet.

    Attributes:
        capacity_joules: infinity on mains.
        charge_watts: that a battery gains while it is charging.
        sessions: of charging; None where nobody ever is.
        rows: of the sessions, one for each client.
        start_seconds: where in the sessions the run starts.
        start_share: of its capacity in each battery at the run's start.
        reserve_share: of its capacity that a client keeps back, but for while it is charging.
    """

    capacity_joules: Floats
    charge_watts: Floats
    sessions: Sessions | None
    rows: Ints
    start_seconds: float = 0.0
    start_share: float = 1.0
    reserve_share: float = 0.0

    def charging(self, client_ids: Ints, at_seconds: float | Floats) -> Bools:
        """Which of these are charging at a moment, [asked]."""
        if self.sessions is None:
            return np.zeros(len(client_ids), np.bool_)
        return self.sessions.is_online(self.rows[client_ids], at_seconds + self.start_seconds)

    def next_charging(self, client_ids: Ints, at_seconds: float | Floats) -> Floats:
        """The first moment from then on at which each is charging, [asked]; infinity for never."""
        if self.sessions is None:
            return np.full(len(client_ids), np.inf)
        found = self.sessions.next_online(self.rows[client_ids], at_seconds + self.start_seconds)
        return found - self.start_seconds

    def charged_joules(
        self, client_ids: Ints, since_seconds: Floats, until_seconds: float | Floats
    ) -> Floats:
        """What charging would have given each between two moments, had it no end, [asked]."""
        if self.sessions is None:
            return np.zeros(len(client_ids))
        rows, start = self.rows[client_ids], self.start_seconds
        seconds = self.sessions.seconds_until(rows, until_seconds + start)
        seconds = seconds - self.sessions.seconds_until(rows, since_seconds + start)
        found: Floats = self.charge_watts[client_ids] * seconds
        return found

    def spare_joules(self, client_ids: Ints, charge_joules: Floats, at_seconds: float | Floats) -> Floats:
        """What work may take out of each, [asked]: all above the reserve; infinity on mains or charging."""
        capacity = self.capacity_joules[client_ids]
        has_battery = np.isfinite(capacity) & ~self.charging(client_ids, at_seconds)
        kept = np.where(has_battery, capacity, 0.0) * self.reserve_share
        return np.where(has_battery, charge_joules - kept, np.inf)

    def phase(self, client_ids: Ints, in_sessions: Floats) -> tuple[Bools, Floats]:
        """Whether each charges at its moment of the sessions' own time, and when that changes, [asked]."""
        if self.sessions is None:
            return np.zeros(len(client_ids), np.bool_), np.full(len(client_ids), np.inf)
        rows = self.rows[client_ids]
        charging = self.sessions.is_online(rows, in_sessions)
        off, on = (
            find(rows, in_sessions) for find in (self.sessions.online_until, self.sessions.next_online)
        )
        return charging, np.where(charging, off, on)


class Charges:
    """How full each battery was when its client was last at work; the engine alone writes to it."""

    def __init__(self) -> None:
        """Nobody has been at work yet."""
        self._joules: Floats = np.zeros(0)
        self._since: Floats = np.zeros(0)

    def at(self, batteries: Batteries, client_ids: Ints, at_seconds: float | Floats) -> Floats:
        """What is in each battery at a moment after its last trip, [asked]; infinity on mains."""
        capacity = batteries.capacity_joules[client_ids]
        if len(self._joules):
            joules, since = self._joules[client_ids], self._since[client_ids]
        else:
            joules, since = capacity * batteries.start_share, np.zeros(len(client_ids))
        found: Floats = np.minimum(capacity, joules + batteries.charged_joules(client_ids, since, at_seconds))
        return found

    def leave(self, batteries: Batteries, client_ids: Ints, joules: Floats, at_seconds: Floats) -> None:
        """These clients' trips ended, each at its moment with so much left, [clients] each."""
        if not len(self._joules):
            self._joules = batteries.capacity_joules * batteries.start_share
            self._since = np.zeros(len(self._joules))
        self._joules[client_ids], self._since[client_ids] = joules, at_seconds

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything, as arrays for a checkpoint; `from_arrays` reads them back."""
        return {"joules": self._joules.copy(), "since": self._since.copy()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> "Charges":
        """What `to_arrays` wrote."""
        found = Charges()
        found._joules, found._since = arrays["joules"].copy(), arrays["since"].copy()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The batteries of some clients on their way; arrays are [clients].

    Attributes:
        batteries: of the whole fleet.
        client_ids: who is on the way.
        begins_seconds: when they set out.
        charge_joules: that each had then.
    """

    batteries: Batteries
    client_ids: Ints
    begins_seconds: float
    charge_joules: Floats

    def followed(self, spent: Callable[[Floats], Floats], until_seconds: Floats) -> tuple[Floats, Floats]:
        """When each battery is empty, infinity where it lasts, and what is in it at last, [clients] each.

        Exact where what is spent never falls: within a stretch in which nothing switches, a battery that
        charges cannot run empty, and of one that does not the moment is found by halving.

        Args:
            spent: joules of each client's work from setting out until its moment, [clients] to [clients].
            until_seconds: from setting out, at which each stops.
        """
        empties = np.full(len(self.client_ids), np.inf)
        charge = self.charge_joules.copy()
        capacity = self.batteries.capacity_joules[self.client_ids]
        if not np.isfinite(capacity).any():
            return empties, charge
        watts = self.batteries.charge_watts[self.client_ids]
        first = self.begins_seconds + self.batteries.start_seconds
        at, ends = np.full(len(charge), first), first + until_seconds
        begun, used = np.zeros(len(charge)), np.zeros(len(charge))
        while (at < ends).any():
            charging, switch = self.batteries.phase(self.client_ids, at)
            stop = np.minimum(ends, switch)
            # The end is said outright, or rounding could leave a last byte out.
            moment = np.where(stop >= ends, np.maximum(until_seconds, begun), stop - first)
            taken = spent(moment)
            gains = np.minimum(capacity, charge + watts * (stop - at))
            left = np.where(charging, gains, charge - (taken - used))
            gone = left < 0
            if gone.any():
                empties = np.where(gone, _reached(spent, begun, moment, used + charge), empties)
                ends, left = np.where(gone, stop, ends), np.where(gone, 0.0, left)
            at, begun, used, charge = stop, moment, taken, left
        return empties, charge


def _reached(spent: Callable[[Floats], Floats], low: Floats, high: Floats, most_joules: Floats) -> Floats:
    """The moment between two, [clients], at which more than so much is spent."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = spent(middle) > most_joules
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return high
