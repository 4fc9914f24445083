"""When clients are online: intervals that repeat, looked up for a million clients at once.

Moments are kept to 1/1024 s, a binary fraction, so that sums over many days stay exact: a client is online
at the very moment that `Sessions.next_online` gives.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.seeds import derive_seed, uniforms

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
DAY_SECONDS = 86400.0
_TICKS_PER_SECOND = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Intervals [start, end) of each row, in order and apart; a row starts again after its period.

    Attributes:
        starts: of all rows' intervals, row after row, [intervals]; ``ends`` likewise.
        offsets: where each row's intervals begin, [rows + 1].
        period_seconds: after which a row's intervals come again, [rows].
        before: seconds of all intervals before each, and of all, [intervals + 1].
    """

    starts: Floats
    ends: Floats
    offsets: Ints
    period_seconds: Floats
    before: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", np.concatenate([[0.0], np.cumsum(self.ends - self.starts)]))

    @staticmethod
    def of(rows: Ints, starts: Floats, ends: Floats, period_seconds: Floats) -> "Sessions":
        """Sessions of intervals in any order; those that touch or overlap are joined.

        Args:
            rows: whose each interval is, [intervals]; a row without any is never online.
            starts: seconds from 0, [intervals].
            ends: above the starts and within the row's period, [intervals].
            period_seconds: of every row, [rows].

        Raises:
            ConfigError: an interval ends before it starts, or lies outside its row's period.
        """
        period = _exact(period_seconds)
        if len(bad := np.flatnonzero(~(np.isfinite(period) & (period > 0)))):
            raise ConfigError(
                f"Row {bad[0]} repeats after {period[bad[0]]:g} s; give a period above 0 and finite."
            )
        order = np.lexsort((starts, rows))
        rows, starts, ends = rows[order], _exact(starts[order]), _exact(ends[order])
        wrong = np.flatnonzero(~((starts >= 0) & (ends >= starts) & (ends <= period[rows])))
        if len(wrong):
            at = wrong[0]
            raise ConfigError(
                f"Client {rows[at]} is online from {starts[at]:g} to {ends[at]:g} s, which is no interval "
                f"within its period of {period[rows[at]]:g} s; correct it, or give a longer period "
                f"({len(wrong)} such intervals)."
            )
        held = ends > starts
        rows, starts, ends = _joined(rows[held], starts[held], ends[held])
        offsets = np.searchsorted(rows, np.arange(len(period) + 1))
        return Sessions(starts=starts, ends=ends, offsets=offsets.astype(np.int64), period_seconds=period)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.period_seconds)

    def share(self) -> Floats:
        """Of its period each row is online, [rows]."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        total = np.bincount(rows, self.ends - self.starts, minlength=len(self))
        found: Floats = total / self.period_seconds
        return found

    def is_online(self, rows: Ints, at_seconds: float | Floats) -> Bools:
        """Which of these rows are online at a moment, or each at its own, [asked]."""
        return self._last_started(rows, at_seconds)[1]

    def online_until(self, rows: Ints, at_seconds: float | Floats) -> Floats:
        """When the session that goes on ends, [asked]: infinity for never, the moment itself if offline."""
        last, online = self._last_started(rows, at_seconds)
        if not len(self.starts):
            return np.broadcast_to(np.asarray(at_seconds, np.float64), len(rows)).copy()
        period, first = self.period_seconds[rows], self._at(self.offsets[rows])
        begun = at_seconds - np.mod(at_seconds, period)
        end = self.ends[self._at(last)]
        through = (end == period) & (self.starts[first] == 0)
        whole = through & (self.ends[first] == period)
        end = np.where(whole, np.inf, end + np.where(through, self.ends[first], 0.0))
        return np.where(online, begun + end, at_seconds)

    def next_online(self, rows: Ints, at_seconds: float | Floats) -> Floats:
        """The first moment from ``at_seconds`` on at which each is online, [asked]; infinity for never."""
        last, online = self._last_started(rows, at_seconds)
        if not len(self.starts):
            return np.full(len(rows), np.inf)
        period, first, beyond = self.period_seconds[rows], self.offsets[rows], self.offsets[rows + 1]
        begun = at_seconds - np.mod(at_seconds, period)
        following = last + 1
        today = begun + self.starts[self._at(following)]
        tomorrow = begun + period + self.starts[self._at(first)]
        found = np.where(following < beyond, today, tomorrow)
        return np.where(online, at_seconds, np.where(first == beyond, np.inf, found))

    def seconds_until(self, rows: Ints, at_seconds: float | Floats) -> Floats:
        """How long each has been online from moment 0 to a moment of its own, [asked]."""
        last, _ = self._last_started(rows, at_seconds)
        period, first = self.period_seconds[rows], self.offsets[rows]
        whole, time = np.divmod(at_seconds, period)
        before = self.before
        each: Floats = before[self.offsets[rows + 1]] - before[first]
        if not len(self.starts):
            return each
        # Of the last session that had started as much as has passed; of those before it all.
        begun = last >= first
        done = np.where(begun, before[self._at(last)] - before[first], 0.0)
        running = np.minimum(time, self.ends[self._at(last)]) - self.starts[self._at(last)]
        found: Floats = whole * each + done + np.where(begun, running, 0.0)
        return found

    def _last_started(self, rows: Ints, at_seconds: float | Floats) -> tuple[Ints, Bools]:
        """The last interval of each row that had started at the moment, one before its first if none had."""
        time = np.mod(at_seconds, self.period_seconds[rows])
        last = last_started(self.starts, self.offsets, rows, time)
        if not len(self.ends):
            return last, np.zeros(len(rows), np.bool_)
        return last, (last >= self.offsets[rows]) & (time < self.ends[self._at(last)])

    def _at(self, index: Ints) -> Ints:
        return np.clip(index, 0, len(self.starts) - 1)


def last_started(starts: Floats, offsets: Ints, rows: Ints, times: Floats) -> Ints:
    """Of each row asked about the last entry that starts at its time or before, [asked].

    Args:
        starts: ascending within each row, row after row, [entries].
        offsets: where each row begins, [rows + 1].
        rows: asked about.
        times: of each, [asked].

    Returns:
        places in ``starts``; one before the row's first where none has started.
    """
    low, high = offsets[rows], offsets[rows + 1]
    # Bisection of all rows side by side.
    while (unsure := low < high).any():
        middle = (low + high) // 2
        started = unsure & (starts[np.minimum(middle, len(starts) - 1)] <= times)
        low, high = np.where(started, middle + 1, low), np.where(unsure & ~started, middle, high)
    last: Ints = low - 1
    return last


def diurnal(
    share: Floats, seed: int, *, peak_hour: float, spread_hours: float, what: str = "diurnal"
) -> Sessions:
    """One session a day for every client, as long as the share of time that it declares.

    Its middle is the peak's hour plus a normal of the spread, drawn once for each client: its habits and
    its time zone. So the share of clients online rises and falls over a day, and each is online for just the
    share that it declares.

    Args:
        share: of time online, [clients].
        seed: of the run.
        peak_hour: of the day, 0 to 24, counted from the run's start.
        spread_hours: standard deviation of the middles.
        what: rhythms of another name are drawn for themselves.
    """
    ids = np.arange(len(share))
    length = share * DAY_SECONDS
    # Box and Muller: two uniforms a client to one normal.
    one, two = uniforms(derive_seed(seed, what), ids, 2).T
    normal = np.sqrt(-2 * np.log1p(-one)) * np.cos(2 * np.pi * two)
    start = _exact(np.mod((peak_hour + spread_hours * normal) * 3600 - length / 2, DAY_SECONDS))
    end = np.minimum(start + _exact(length), start + DAY_SECONDS)
    over = np.maximum(end - DAY_SECONDS, 0)
    return Sessions.of(
        np.concatenate([ids, ids]),
        np.concatenate([start, np.zeros(len(ids))]),
        np.concatenate([np.minimum(end, DAY_SECONDS), over]),
        np.full(len(ids), DAY_SECONDS),
    )


def _exact(seconds: Floats) -> Floats:
    found: Floats = np.round(np.asarray(seconds, np.float64) * _TICKS_PER_SECOND) / _TICKS_PER_SECOND
    return found


def to_tick(seconds: float) -> float:
    """The nearest moment that sums keep exactly."""
    return float(_exact(np.array(seconds)))


def _joined(rows: Ints, starts: Floats, ends: Floats) -> tuple[Ints, Floats, Floats]:
    """Intervals sorted by row and start, those that touch or overlap as one."""
    if not len(rows):
        return rows, starts, ends
    new_row = np.concatenate([[True], rows[1:] != rows[:-1]])
    # The furthest end so far, row by row: rows are lifted apart, so that one running maximum serves all.
    lift = np.cumsum(new_row) * (ends.max() + 1)
    furthest = np.maximum.accumulate(ends + lift) - lift
    begins = new_row | np.concatenate([[True], starts[1:] > furthest[:-1]])
    lasts = np.concatenate([np.flatnonzero(begins)[1:] - 1, [len(rows) - 1]])
    return rows[begins], starts[begins], furthest[lasts]
