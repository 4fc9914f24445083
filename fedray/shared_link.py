"""The server's own link, shared by all who receive or send at once: what each gets, and when it is done.

At any moment everybody gets an even share of what the link carries; who cannot take that much takes what its
own link carries, and the others share what is left (max-min fairness). Shares change when somebody starts, is
done or leaves, and stay in between, so the times are exact.
"""

from dataclasses import dataclass, field

import numpy as np

from fedray.cost import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLink:
    """What all clients together may send up, and receive; None for a way that is never short."""

    up_bps: float | None = None
    down_bps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """What goes one way; arrays are [clients].

    Attributes:
        start_seconds: when each one's first byte may flow; infinity for who sends nothing.
        total_bytes: of each.
        own_bps: of the client's own link.
        leave_seconds: when it breaks off; infinity for who stays.
    """

    start_seconds: Floats
    total_bytes: Ints
    own_bps: Floats
    leave_seconds: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """How they went; arrays are [clients].

    Attributes:
        finish_seconds: when each was done; infinity for who left before or never started.
        moved_bytes: whole bytes until then, or until it left.
    """

    finish_seconds: Floats
    moved_bytes: Ints


def transferred(transfers: Transfers, capacity_bps: float) -> Transferred:
    """The transfers over a link of this capacity."""
    alone = transfers.start_seconds + transfers.total_bytes * 8 / transfers.own_bps
    if transfers.own_bps.sum() <= capacity_bps:
        seconds = np.minimum(transfers.leave_seconds, alone) - transfers.start_seconds
        # Who never starts has no seconds.
        flowed = np.where(np.isfinite(transfers.start_seconds), seconds, 0.0) * transfers.own_bps
        return _told(transfers, alone, flowed)
    # From the slowest own link to the fastest: who takes less than an even share comes first.
    order = np.argsort(transfers.own_bps, kind="stable")
    bits: Floats = 8 * transfers.total_bytes[order].astype(np.float64)
    sharing = _Sharing(
        start=transfers.start_seconds[order],
        left=bits.copy(),
        own=transfers.own_bps[order],
        leave=transfers.leave_seconds[order],
        capacity=capacity_bps,
    )
    sharing.through()
    finish, flowed = np.empty(len(order)), np.empty(len(order))
    finish[order] = sharing.finish
    flowed[order] = bits - sharing.left
    return _told(transfers, finish, flowed)


def _told(transfers: Transfers, finish: Floats, flowed_bits: Floats) -> Transferred:
    done = finish <= transfers.leave_seconds
    done &= np.isfinite(finish)
    # A transfer's end is said outright, or rounding could leave its last byte on the way.
    part = np.minimum(np.maximum(flowed_bits, 0) / 8, transfers.total_bytes).astype(np.int64)
    return Transferred(
        finish_seconds=np.where(done, finish, np.inf),
        moved_bytes=np.where(done, transfers.total_bytes, part),
    )


def fair_shares(own_bps: Floats, capacity_bps: float) -> Floats:
    """What each gets of a link, [clients], in ascending order of their own links."""
    if own_bps.sum() <= capacity_bps:
        return own_bps
    taken = np.concatenate([[0.0], np.cumsum(own_bps)[:-1]])
    even = (capacity_bps - taken) / np.arange(len(own_bps), 0, -1)
    # The first whose own link carries more than an even share of what those before it leave.
    shares: Floats = np.minimum(own_bps, even[np.argmax(own_bps >= even)])
    return shares


@dataclass(slots=True, kw_only=True)
class _Sharing:
    """The state between two events; arrays are [clients], by their own links; ``left`` in bits."""

    start: Floats
    left: Floats
    own: Floats
    leave: Floats
    capacity: float
    finish: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.finish = np.full(len(self.start), np.inf)

    def through(self) -> None:
        """Until everybody is done or gone."""
        starts = np.sort(self.start[np.isfinite(self.start)])
        waiting, now, active = 0, 0.0, np.zeros(len(self.start), np.bool_)
        while waiting < len(starts) or active.any():
            upcoming = starts[waiting] if waiting < len(starts) else np.inf
            now = self._until(np.flatnonzero(active), now, upcoming)
            active &= np.isinf(self.finish) & (self.leave > now)
            if now >= upcoming:
                active |= (self.start == upcoming) & (self.leave > upcoming)
                waiting = int(np.searchsorted(starts, upcoming, side="right"))

    def _until(self, active: Ints, now: float, upcoming: float) -> float:
        """Let these go on until somebody is done, leaves or starts; when that is."""
        if not len(active):
            return upcoming
        rates = fair_shares(self.own[active], self.capacity)
        needed = self.left[active] / rates
        ends = min(now + float(needed.min()), float(self.leave[active].min()), upcoming)
        done = now + needed <= ends
        self.left[active] -= rates * (ends - now)
        self.left[active[done]] = 0.0
        self.finish[active[done]] = ends
        return ends
