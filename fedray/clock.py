"""The virtual clock of a synchronous round: who arrives when, when it closes, what was spent until then.

Where rounds overlap a trip is closed by itself, at the moment at which it ends.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedray.cost import Floats, Ints
from fedray.errors import ConfigError
from fedray.policy import Bools, Pace
from fedray.record import Outcome
from fedray.riding import SpentRiding
from fedray.seeds import derive_seed, uniforms
from fedray.trips import Middle, Trips

_SOON = float(np.nextafter(0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound:
    """How the round went; arrays are [clients], in the order of the trips.

    Attributes:
        virtual_seconds: from the round's start until it closed.
        outcomes: ``ok``, ``late``, ``dropped`` or ``oom``.
        client_seconds: until each client arrived, dropped, ran out of memory or was called off.
        up_bytes: sent until then; ``down_bytes`` and ``provision_bytes`` received until then.
        boundary_up_bytes: sent over the cut until then; ``boundary_down_bytes`` received over it;
            ``num_messages`` over the cut, that had arrived.
        waiting_seconds: for the server until then.
        receive_seconds: of those until then, from being asked to having received everything; then
            ``compute_seconds`` of the client's own arithmetic, and ``send_seconds`` at the end. What is left
            of a client with a cut went by while bytes crossed it.
        joules: spent until then. Waiting for others after the own update arrived is not charged.
        received: whether everything sent down had arrived, so that the client holds the pieces.
        leave_seconds: at which each would leave, done or not, but for its battery; infinity for who stays.
        server_seconds: that the server swept until the round closed; ``server_joules`` of all its shards.
        charge_joules: in each battery at last, and ``emptied`` whose ran empty; None where all are on mains.
    """

    virtual_seconds: float
    outcomes: tuple[Outcome, ...]
    client_seconds: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints
    boundary_up_bytes: Ints
    boundary_down_bytes: Ints
    num_messages: Ints
    waiting_seconds: Floats
    receive_seconds: Floats
    compute_seconds: Floats
    send_seconds: Floats
    joules: Floats
    received: Bools
    leave_seconds: Floats
    server_seconds: float
    server_joules: float
    charge_joules: Floats | None = None
    emptied: Bools | None = None


def draw_dropouts(run_seed: int, round_number: int, client_ids: Ints, availability: Floats) -> Floats:
    """Which share of its trip each client completes before it leaves, [clients]; infinity if it stays.

    A client leaves with probability 1 - availability, at a moment uniform over its trip. The draw
    depends on the run's seed, the round and the client alone.
    """
    chance, share = uniforms(derive_seed(run_seed, "dropouts", round_number), client_ids, 2).T
    return np.where(chance < availability, np.inf, share)


def draw_online(run_seed: int, round_number: int, client_ids: Ints, availability: Floats) -> Bools:
    """Who stays online for a whole round, [clients]: where clients drop out, the others are those who do."""
    return np.isinf(draw_dropouts(run_seed, round_number, client_ids, availability))


def close_round(
    trips: Trips, pace: Pace, leaves_after: Floats | None = None, offline_seconds: Floats | None = None
) -> ClosedRound:
    """Runs the trips side by side from second 0 and closes the round.

    The round closes at the earliest of three moments: the ``pace.goal``-th arrival (of equal moments the
    smaller client id arrives first); the deadline, at which an arrival still counts; and the moment when
    nobody is on the way any more, since a client that drops or runs out of memory is noticed at once.
    A client still on the way then is ``late`` and called off. A client that does not fit receives
    everything and is ``oom`` at its first step, which is charged no time.

    Whose battery runs empty drops out at that moment.

    Who leaves early makes room in the sweeps and on a shared link, so these are worked out twice: once with
    everybody, which says how long each trip is, with ``leaves_after`` when it ends and when a battery is
    empty, and once without those who left.

    Args:
        trips: of the clients that were given something; with nobody the round closes at second 0.
        pace: goal, concurrency and deadline; the concurrency may not be smaller than the number of trips.
        leaves_after: from `draw_dropouts`; None if nobody drops out.
        offline_seconds: when each goes offline and drops out, from the round's start, [clients]; infinity
            for who stays, None if everybody does.

    Raises:
        ConfigError: if ``pace.concurrency`` cannot take effect.
    """
    num_clients = len(trips.client_ids)
    if pace.concurrency is not None and pace.concurrency < num_clients:
        raise ConfigError(
            f"pace.concurrency = {pace.concurrency}, but the round asks {num_clients} clients and a "
            "synchronous round asks all at once; select fewer clients or leave concurrency out."
        )
    middle = Middle(trips, np.full(num_clients, np.inf))
    leave = np.full(num_clients, np.inf) if leaves_after is None else leaves_after * middle.arrival_seconds
    if offline_seconds is not None:
        leave = np.minimum(leave, offline_seconds)
    empties = empty_seconds(trips, middle, leave)
    gone = np.minimum(leave, empties)
    gone = np.where(trips.fits, gone, np.minimum(gone, middle.receive_seconds))
    if np.isfinite(gone).any():
        middle = Middle(trips, gone)
    return _closed(trips, middle, _Leaving(own=leave, empties=empties), pace)


def close_trip(trip: Trips, pace: Pace, leave_seconds: float, empty_seconds: float = np.inf) -> ClosedRound:
    """A round of one client, whose rides are known as far as they come.

    Args:
        trip: of the client alone.
        pace: a deadline calls it off.
        leave_seconds: at which it leaves, done or not; infinity if it stays.
        empty_seconds: at which its battery is empty; infinity for one that lasts.
    """
    leaving = _Leaving(own=np.array([leave_seconds]), empties=np.array([empty_seconds]))
    return _closed(trip, Middle(trip, leaving.first), leaving, pace)


def deadline_at(seconds: float) -> Pace:
    """At which a trip is called off after so long; one that begins at that very moment has done nothing."""
    return Pace(deadline_seconds=max(seconds, _SOON))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaving:
    """When clients leave of themselves, and when their batteries are empty, [clients]."""

    own: Floats
    empties: Floats

    @property
    def first(self) -> Floats:
        """The earlier of the two."""
        return np.minimum(self.own, self.empties)


def _closed(trips: Trips, middle: Middle, leaving: _Leaving, pace: Pace) -> ClosedRound:
    leave = leaving.first
    finish = np.where(trips.fits, middle.arrival_seconds, middle.receive_seconds)
    drops = leave < finish
    end = np.minimum(leave, finish)
    arrives = trips.fits & ~drops
    close, accepted = _close(trips.client_ids, end, arrives, pace)
    lost: NDArray[np.str_] = np.where(drops, "dropped", "oom")
    named = np.where(accepted, "ok", np.where(~arrives & (end <= close), lost, "late"))
    until = np.minimum(end, close)
    closed = _spent(trips, middle, until, close, tuple(named.tolist()), leaving.own)
    return closed if trips.drain is None else _left(closed, trips, middle, until >= leaving.empties)


def empty_seconds(trips: Trips, middle: Middle, leave_seconds: Floats) -> Floats:
    """When each battery is empty, [clients]; infinity if it lasts until its client leaves or is done."""
    if trips.drain is None:
        return np.full(len(trips.client_ids), np.inf)
    finish = np.where(trips.fits, middle.arrival_seconds, middle.receive_seconds)
    until = np.minimum(leave_seconds, finish)
    return trips.drain.followed(partial(_joules_until, trips, middle), until)[0]


def _left(closed: ClosedRound, trips: Trips, middle: Middle, emptied: Bools) -> ClosedRound:
    """With what is left in each battery."""
    assert trips.drain is not None, "asked where there are batteries"
    left = trips.drain.followed(partial(_joules_until, trips, middle), closed.client_seconds)[1]
    return replace(closed, charge_joules=np.where(emptied, 0.0, left), emptied=emptied)


def steps_in_time(trips: Trips, num_steps: Ints, deadline_seconds: float) -> Ints:
    """How many of its steps each client does so that its update is there by a deadline, [clients].

    All of them where that does; and all for a client that cannot do even one, which will be late.

    Args:
        trips: with all steps, none of them under a cut.
        num_steps: of each client.
        deadline_seconds: from the round's start.
    """
    step_seconds = trips.compute_seconds / np.maximum(num_steps, 1)
    spare = deadline_seconds - trips.receive_seconds - trips.send_seconds
    fitting = np.floor(spare / np.maximum(step_seconds, np.finfo(np.float64).tiny))
    steps = np.clip(fitting, 0, num_steps).astype(np.int64)
    # Rounding may leave the last of them a breath too late.
    ends = trips.receive_seconds + steps * step_seconds + trips.send_seconds
    steps = np.where((ends > deadline_seconds) & (steps < num_steps), steps - 1, steps)
    return np.where(steps < 1, num_steps, steps)


def _close(client_ids: Ints, end: Floats, arrives: Bools, pace: Pace) -> tuple[float, Bools]:
    """When the round closes and whose updates count."""
    deadline = np.inf if pace.deadline_seconds is None else pace.deadline_seconds
    order = np.lexsort((client_ids, end))
    in_time = order[arrives[order] & (end[order] <= deadline)][: pace.goal]
    reached = pace.goal is not None and len(in_time) == pace.goal
    close = end[in_time[-1]] if reached else min(end.max(initial=0.0), deadline)
    accepted = np.zeros(len(end), np.bool_)
    accepted[in_time] = True
    return float(close), accepted


def _spent(
    trips: Trips,
    middle: Middle,
    until: Floats,
    close: float,
    outcomes: tuple[Outcome, ...],
    leave_seconds: Floats,
) -> ClosedRound:
    """What each client used from second 0 to its own end."""
    sent_down, up_bytes = middle.moved(until)
    riding = middle.spent(until)
    computed = riding.compute_seconds
    provision_bytes = np.minimum(sent_down, trips.provision_bytes)
    # On a shared link sending takes as long as it took.
    sending = trips.send_seconds if trips.shared_link is None else middle.sending_seconds()
    busy = middle.busy_seconds(close)
    server_watts = 0.0 if trips.server is None else trips.server.all_watts
    return ClosedRound(
        virtual_seconds=close,
        outcomes=outcomes,
        client_seconds=until,
        up_bytes=up_bytes,
        down_bytes=sent_down - provision_bytes,
        provision_bytes=provision_bytes,
        boundary_up_bytes=riding.up_bytes,
        boundary_down_bytes=riding.down_bytes,
        num_messages=riding.num_messages,
        waiting_seconds=riding.waiting_seconds,
        receive_seconds=np.minimum(until, middle.receive_seconds),
        compute_seconds=computed,
        send_seconds=np.clip(until - middle.end_seconds, 0, sending),
        joules=_joules(trips, until, riding, sent_down + up_bytes),
        received=until >= middle.receive_seconds,
        leave_seconds=leave_seconds,
        server_seconds=busy,
        server_joules=busy * server_watts,
    )


def _joules(trips: Trips, until: Floats, riding: SpentRiding, moved_bytes: Ints) -> Floats:
    """What each client spent until its own moment, in which it moved so much beside its rides, [clients]."""
    device, computed = trips.device, riding.compute_seconds
    joules: Floats = (
        computed * device.compute_watts
        + (until - computed) * device.idle_watts
        + (moved_bytes + riding.up_bytes + riding.down_bytes) * device.radio_joules_per_byte
    )
    return joules


def _joules_until(trips: Trips, middle: Middle, until: Floats) -> Floats:
    """The same of any moments; it never falls."""
    down_bytes, up_bytes = middle.moved(until)
    return _joules(trips, until, middle.spent(until), down_bytes + up_bytes)
