"""The virtual clock of a synchronous round: who arrives when, when it closes, what was spent until then.

A trip has three parts, one after the other: receive (a round trip, then the frozen pieces still
missing, then the adapter), compute, and send (a round trip, then the update). Bytes flow evenly
after the round trip; where the server's own link is short, all who are on it share it. Where a client has a
cut, the middle part is its rides on the server's sweeps.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedray.battery import Drain
from fedray.cost import Device, Floats, Ints
from fedray.errors import ConfigError
from fedray.policy import Bools, Pace
from fedray.record import Outcome
from fedray.riders import Riders
from fedray.riding import SpentRiding, spent_riding
from fedray.seeds import derive_seed, uniforms
from fedray.shared_link import SharedLink, Transferred, Transfers, transferred
from fedray.timetable import Timetable, Travellers, timetable
from fedray.virtual_server import VirtualServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """What the asked clients set out to do; arrays are [clients].

    Attributes:
        client_ids: rows of the fleet, without repeats.
        device: the clients' declared links and power.
        fits: whether the job stays within the client's memory.
        compute_seconds: of the client's own arithmetic in all local steps.
        up_bytes: the update's.
        down_bytes: the adapter's.
        provision_bytes: of frozen pieces that come before it.
        riders: what each does under its cut; None where nobody has one.
        server: that they ride; it comes with ``riders``.
        shared_link: that all are on; None where it is never short. It goes with whole models alone.
        drain: their batteries; None where all are on mains.
    """

    client_ids: Ints
    device: Device
    fits: Bools
    compute_seconds: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints
    riders: Riders | None = None
    server: VirtualServer | None = None
    shared_link: SharedLink | None = None
    drain: Drain | None = None

    @property
    def receive_seconds(self) -> Floats:
        """From the round's start until everything has reached the client, if it alone is on the way."""
        received = self.provision_bytes + self.down_bytes
        return self.device.rtt_seconds + received * 8 / self.device.down_bps

    @property
    def send_seconds(self) -> Floats:
        """From the last local step until the update has arrived, likewise."""
        return self.device.rtt_seconds + self.up_bytes * 8 / self.device.up_bps


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
    middle = _Middle(trips, np.full(num_clients, np.inf))
    leave = np.full(num_clients, np.inf) if leaves_after is None else leaves_after * middle.arrival_seconds
    if offline_seconds is not None:
        leave = np.minimum(leave, offline_seconds)
    empties = _empties(trips, middle, leave)
    leave = np.minimum(leave, empties)
    gone = np.where(trips.fits, leave, np.minimum(leave, middle.receive_seconds))
    if np.isfinite(gone).any():
        middle = _Middle(trips, gone)
    finish = np.where(trips.fits, middle.arrival_seconds, middle.receive_seconds)
    drops = leave < finish
    end = np.minimum(leave, finish)
    arrives = trips.fits & ~drops
    close, accepted = _close(trips.client_ids, end, arrives, pace)
    lost: NDArray[np.str_] = np.where(drops, "dropped", "oom")
    named = np.where(accepted, "ok", np.where(~arrives & (end <= close), lost, "late"))
    until = np.minimum(end, close)
    closed = _spent(trips, middle, until, close, tuple(named.tolist()))
    return closed if trips.drain is None else _left(closed, trips, middle, until >= empties)


def _empties(trips: Trips, middle: "_Middle", leave_seconds: Floats) -> Floats:
    """When each battery is empty, [clients]; infinity for one that lasts."""
    if trips.drain is None:
        return np.full(len(trips.client_ids), np.inf)
    finish = np.where(trips.fits, middle.arrival_seconds, middle.receive_seconds)
    until = np.minimum(leave_seconds, finish)
    return trips.drain.followed(partial(_joules_until, trips, middle), until)[0]


def _left(closed: ClosedRound, trips: Trips, middle: "_Middle", emptied: Bools) -> ClosedRound:
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


class _Middle:
    """What lies between receiving and sending, given when clients leave the round, [clients]."""

    def __init__(self, trips: Trips, gone_seconds: Floats) -> None:
        self._trips = trips
        self._table: Timetable | None = None
        down = _shared_down(trips, gone_seconds)
        self.receive_seconds = trips.receive_seconds if down is None else down.finish_seconds
        self.end_seconds = self.receive_seconds + trips.compute_seconds
        up = _shared_up(trips, self.end_seconds, gone_seconds)
        self._shared_arrival = None if up is None else up.finish_seconds
        if trips.riders is None or not trips.riders.num_steps.any():
            return
        assert trips.server is not None, "riders come with the server that they ride"
        self._who = Travellers(
            client_ids=trips.client_ids,
            riders=trips.riders,
            device=trips.device,
            start_seconds=self.receive_seconds,
            leave_seconds=gone_seconds,
        )
        self._table = timetable(trips.server, self._who)
        rides = trips.riders.num_steps > 0
        self.end_seconds = np.where(rides, self._table.finish_seconds, self.end_seconds)

    @property
    def arrival_seconds(self) -> Floats:
        """When each update is there; infinity for one whose client left before it was made."""
        alone = self.end_seconds + self._trips.send_seconds
        if self._shared_arrival is None:
            return alone
        # Who does not fit sends nothing, and is on nobody's way.
        return np.where(self._trips.fits, self._shared_arrival, alone)

    def moved(self, until_seconds: Floats) -> tuple[Ints, Ints]:
        """Bytes that had come down, and gone up, by each client's own moment, [clients] each."""
        trips, device = self._trips, self._trips.device
        whole = trips.down_bytes + trips.provision_bytes
        arrived, sent = until_seconds >= self.receive_seconds, until_seconds >= self.arrival_seconds
        # Sharing a link is worked out again only if somebody stopped on the way.
        down = None if arrived.all() else _shared_down(trips, until_seconds)
        up = None if sent.all() else _shared_up(trips, self.end_seconds, until_seconds)
        arriving = _flowed(whole, device.down_bps, until_seconds - device.rtt_seconds)
        leaving = _flowed(
            trips.up_bytes, device.up_bps, until_seconds - self.end_seconds - device.rtt_seconds
        )
        arriving = arriving if down is None else down.moved_bytes
        leaving = leaving if up is None else up.moved_bytes
        # A trip's end is said outright, or rounding could leave its last byte on the way.
        return np.where(arrived, whole, arriving), np.where(sent, trips.up_bytes, leaving)

    def sending_seconds(self) -> Floats:
        """From its end to its arrival, of each client that ends at all."""
        ends = np.isfinite(self.end_seconds)
        return np.subtract(self.arrival_seconds, self.end_seconds, where=ends, out=np.zeros(len(ends)))

    def spent(self, until_seconds: Floats) -> SpentRiding:
        """What each client spent until its own moment."""
        trips = self._trips
        computed = np.clip(until_seconds - self.receive_seconds, 0, trips.compute_seconds)
        if self._table is None:
            none, nothing = np.zeros(len(computed)), np.zeros(len(computed), np.int64)
            return SpentRiding(
                compute_seconds=computed,
                waiting_seconds=none,
                up_bytes=nothing,
                down_bytes=nothing,
                num_messages=nothing,
            )
        riding = spent_riding(self._table, self._who, until_seconds)
        rides = self._who.riders.num_steps > 0
        return replace(riding, compute_seconds=np.where(rides, riding.compute_seconds, computed))

    def busy_seconds(self, until_seconds: float) -> float:
        """How long the server swept until then."""
        return 0.0 if self._table is None else self._table.busy_seconds(until_seconds)


def _shared_down(trips: Trips, leave_seconds: Floats) -> Transferred | None:
    """The way down of who stays until then; None where nobody shares it."""
    if trips.shared_link is None or trips.shared_link.down_bps is None:
        return None
    device = trips.device
    whole = trips.down_bytes + trips.provision_bytes
    transfers = Transfers(
        start_seconds=device.rtt_seconds,
        total_bytes=whole,
        own_bps=device.down_bps,
        leave_seconds=leave_seconds,
    )
    return transferred(transfers, trips.shared_link.down_bps)


def _shared_up(trips: Trips, end_seconds: Floats, leave_seconds: Floats) -> Transferred | None:
    """The way up, likewise, of those that fit."""
    if trips.shared_link is None or trips.shared_link.up_bps is None:
        return None
    device = trips.device
    transfers = Transfers(
        start_seconds=np.where(trips.fits, end_seconds + device.rtt_seconds, np.inf),
        total_bytes=trips.up_bytes,
        own_bps=device.up_bps,
        leave_seconds=leave_seconds,
    )
    return transferred(transfers, trips.shared_link.up_bps)


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
    trips: Trips, middle: _Middle, until: Floats, close: float, outcomes: tuple[Outcome, ...]
) -> ClosedRound:
    """What each client used from second 0 to its own end."""
    sent_down, up_bytes = middle.moved(until)
    riding = middle.spent(until)
    computed = riding.compute_seconds
    provision_bytes = np.minimum(sent_down, trips.provision_bytes)
    # On a shared link sending takes as long as it took.
    sending = trips.send_seconds if trips.shared_link is None else middle.sending_seconds()
    busy = middle.busy_seconds(close)
    server_watts = 0.0 if trips.server is None else trips.server.num_shards * trips.server.watts
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


def _joules_until(trips: Trips, middle: _Middle, until: Floats) -> Floats:
    """The same of any moments; it never falls."""
    down_bytes, up_bytes = middle.moved(until)
    return _joules(trips, until, middle.spent(until), down_bytes + up_bytes)


def _flowed(total: Ints, bps: Floats, seconds: Floats) -> Ints:
    """Whole bytes through a link after so many seconds, at most the total."""
    return np.minimum(np.maximum(seconds, 0) * bps / 8, total).astype(np.int64)
