"""Trips on the virtual clock: what asked clients set out to do, and when each part of it is over.

A trip has three parts, one after the other: receive (a round trip, then the frozen pieces still
missing, then the adapter), compute, and send (a round trip, then the update). Bytes flow evenly
after the round trip; where the server's own link is short, all who are on it share it. Where a client has a
cut, the middle part is its rides on the server's sweeps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fedray.battery import Drain
from fedray.cost import Device, Floats, Ints
from fedray.policy import Bools
from fedray.riders import Riders
from fedray.riding import SpentRiding, spent_riding
from fedray.shared_link import SharedLink, Transferred, Transfers, transferred
from fedray.timetable import Timetable, Travellers, timetable
from fedray.virtual_server import VirtualServer

# Works out what riders come to where the server is not theirs alone.
Rode = Callable[[Travellers], Timetable]


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
        rode: tells their rides on a server that others ride, too; None where they have it to themselves.
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
    rode: Rode | None = None

    def __len__(self) -> int:
        """How many clients."""
        return len(self.client_ids)

    @property
    def rides(self) -> Bools:
        """Which of them have a cut."""
        return np.zeros(len(self), np.bool_) if self.riders is None else self.riders.num_steps > 0

    def take(self, index: Ints) -> "Trips":
        """The same for the clients at ``index``, but for what they share with others and their batteries."""
        arrays: dict[str, Any] = {name: getattr(self, name)[index] for name in _ARRAYS}
        riders = None if self.riders is None else self.riders.take(index)
        return Trips(device=self.device.take(index), riders=riders, **arrays)

    def facts(self) -> dict[str, Any]:
        """What `from_facts` reads back, of clients without what they share; plain numbers in lists."""
        device = {name: _plain(getattr(self.device, name)) for name in Device.__slots__}
        riders = self.riders
        return {
            "device": device,
            "riders": riders and {one.name: getattr(riders, one.name).tolist() for one in fields(riders)},
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
        }

    @staticmethod
    def from_facts(facts: Mapping[str, Any]) -> "Trips":
        """The trips that were written."""
        device, riders = facts["device"], facts["riders"]
        rates = {dtype: np.array(rate) for dtype, rate in device["flops_per_s"].items()}
        rest = {name: np.array(column) for name, column in device.items() if name != "flops_per_s"}
        arrays: dict[str, Any] = {name: np.array(facts[name]) for name in _ARRAYS}
        return Trips(
            device=Device(flops_per_s=rates, **rest),
            riders=riders and Riders(**{name: np.array(column) for name, column in riders.items()}),
            **arrays,
        )

    @property
    def receive_seconds(self) -> Floats:
        """From the round's start until everything has reached the client, if it alone is on the way."""
        received = self.provision_bytes + self.down_bytes
        return self.device.rtt_seconds + received * 8 / self.device.down_bps

    @property
    def send_seconds(self) -> Floats:
        """From the last local step until the update has arrived, likewise."""
        return self.device.rtt_seconds + self.up_bytes * 8 / self.device.up_bps


_ARRAYS = ("client_ids", "fits", "compute_seconds", "up_bytes", "down_bytes", "provision_bytes")


def _plain(column: Any) -> Any:
    """An array, or one for each dtype, in lists."""
    if isinstance(column, Mapping):
        return {dtype: rate.tolist() for dtype, rate in column.items()}
    return column.tolist()


class Middle:
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
        self._who = Travellers(
            client_ids=trips.client_ids,
            riders=trips.riders,
            device=trips.device,
            start_seconds=self.receive_seconds,
            leave_seconds=gone_seconds,
        )
        if trips.rode is not None:
            self._table = trips.rode(self._who)
        else:
            assert trips.server is not None, "riders come with the server that they ride"
            self._table = timetable(trips.server, self._who)
        self.end_seconds = np.where(trips.rides, self._table.finish_seconds, self.end_seconds)

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
        return replace(riding, compute_seconds=np.where(trips.rides, riding.compute_seconds, computed))

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


def _flowed(total: Ints, bps: Floats, seconds: Floats) -> Ints:
    """Whole bytes through a link after so many seconds, at most the total."""
    return np.minimum(np.maximum(seconds, 0) * bps / 8, total).astype(np.int64)
