"""A menu's prices for a cohort, filled in shape by shape, and how a decision's clients ride a server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedray.assignment import ATTENTIONS, Assignment, Attention
from fedray.cost import Device, Floats, Footprint, Ints, ServerShare, StepCost, WorkShape, steps_of
from fedray.errors import PolicyError
from fedray.policy import Cohort
from fedray.riders import Riders
from fedray.row_lengths import RowLengths
from fedray.virtual_server import VirtualServer

FootprintOf = Callable[[Assignment, WorkShape], Footprint]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSheet:
    """Arrays of [menu, clients], and of each entry the footprint of some shape, [menu].

    Attributes:
        middle_seconds: computing, and under a cut its messages and an otherwise idle server.
        compute_seconds: the client's own.
        server_bytes: of the server's memory while the client is in the round.
    """

    footprints: list[Footprint]
    peak_bytes: Ints
    num_steps: Ints
    compute_seconds: Floats
    middle_seconds: Floats
    up_bytes: Ints
    down_bytes: Ints
    boundary_up_bytes: Ints
    boundary_down_bytes: Ints
    server_seconds: Floats
    server_bytes: Ints


def price_sheet(
    menu: Sequence[Assignment], cohort: Cohort, footprint_of: FootprintOf, server: VirtualServer | None
) -> PriceSheet:
    """Every entry on every client; the callable is asked once for each entry and shape.

    Where batches may be shorter than the longest row it is asked of the shortest row, too, for time is
    priced at a batch's mean length and memory at the longest.

    Raises:
        PolicyError: if an entry has a cut and there is no server.
    """
    sheet = _blank(len(menu), len(cohort))
    for shared in shapes(cohort):
        costs = [shared.cost(entry, footprint_of) for entry in menu]
        footprints = [cost.longest for cost in costs]
        at = shared.clients
        for name in ("peak_bytes", "up_bytes", "down_bytes"):
            column = np.array([[getattr(footprint, name)] for footprint in footprints])
            getattr(sheet, name)[:, at] = column
        for row, (entry, cost) in enumerate(zip(menu, costs, strict=True)):
            if entry.split:
                _fill_cut(sheet, row, entry, cost, shared, _needed(server, entry))
            else:
                _fill_whole(sheet, row, entry, cost, shared)
        sheet.footprints[:] = footprints
    return sheet


def _blank(num_entries: int, num_clients: int) -> PriceSheet:
    def counts() -> Ints:
        return np.zeros((num_entries, num_clients), np.int64)

    def seconds() -> Floats:
        return np.zeros((num_entries, num_clients))

    return PriceSheet(
        footprints=[],
        peak_bytes=counts(),
        num_steps=counts(),
        compute_seconds=seconds(),
        middle_seconds=seconds(),
        up_bytes=counts(),
        down_bytes=counts(),
        boundary_up_bytes=counts(),
        boundary_down_bytes=counts(),
        server_seconds=seconds(),
        server_bytes=counts(),
    )


def riders_of(
    given: Sequence[Assignment | None], cohort: Cohort, footprint_of: FootprintOf
) -> tuple[Riders, list[ServerShare | None]]:
    """What each client of a decision does under its cut, and what that is for the server, [clients]."""
    shares: list[ServerShare | None] = [None] * len(cohort)
    parts = []
    places_of: dict[Assignment, list[int]] = {}
    for place, own in enumerate(given):
        if own is not None and own.split:
            places_of.setdefault(own, []).append(place)
    for entry, alike in places_of.items():
        takers = np.array(alike, np.int64)
        for shared in shapes(cohort.take(takers)):
            cost = shared.cost(entry, footprint_of)
            places = takers[shared.clients]
            parts.append((places, _riders(entry, cost, shared)))
            for place in places.tolist():
                shares[place] = cost.longest.server
    return Riders.placed(len(cohort), parts), shares


def compute_seconds_of(
    given: Sequence[Assignment | None],
    cohort: Cohort,
    footprint_of: FootprintOf,
    server: VirtualServer | None,
) -> Floats:
    """Of each client's own arithmetic at the cohort's rates, [clients]; 0 where it is given nothing."""
    seconds = np.zeros(len(cohort))
    for entry in dict.fromkeys(entry for entry in given if entry is not None):
        takers = np.array([place for place, own in enumerate(given) if own == entry], np.int64)
        sheet = price_sheet((entry,), cohort.take(takers), footprint_of, server)
        seconds[takers] = sheet.compute_seconds[0]
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The clients of a cohort that pad to the same tokens and run the same kernel, by their positions."""

    clients: Ints
    tokens: int
    attention: Attention
    device: Device
    num_rows: Ints
    num_tokens: Ints | None
    row_lengths: RowLengths | None

    def cost(self, entry: Assignment, footprint_of: FootprintOf) -> StepCost:
        """Of one step; a second length is asked for only where some batch may be shorter than the longest."""
        work = WorkShape(rows=entry.batch_size, tokens=self.tokens, attention=self.attention)
        longest, lengths = footprint_of(entry, work), self.row_lengths
        if lengths is None:
            return StepCost(longest=longest)
        shorter_by = self.tokens - lengths.mean_longest(entry)
        if not shorter_by.any():
            return StepCost(longest=longest)
        shortest = footprint_of(entry, replace(work, tokens=lengths.shortest))
        share = shorter_by / (self.tokens - lengths.shortest)
        return StepCost(longest=longest, shortest=shortest, share=share)


def shapes(cohort: Cohort) -> Iterator[Shape]:
    """Every shape among the cohort's clients, in one order."""
    for attention in ATTENTIONS:
        alike = cohort.attention == attention
        for tokens in np.unique(cohort.tokens[alike]).tolist():
            clients = np.flatnonzero(alike & (cohort.tokens == tokens))
            yield Shape(
                clients=clients,
                tokens=tokens,
                attention=attention,
                device=cohort.device.take(clients),
                num_rows=cohort.num_rows[clients],
                num_tokens=None if cohort.num_tokens is None else cohort.num_tokens[clients],
                row_lengths=None if cohort.row_lengths is None else cohort.row_lengths[clients],
            )


def _fill_whole(sheet: PriceSheet, row: int, entry: Assignment, cost: StepCost, shared: Shape) -> None:
    device, at = shared.device, shared.clients
    rates = device.flops_per_s[entry.dtype], device.memory_bytes_per_s
    step_seconds = cost.mean(lambda one: one.roofline.seconds(*rates))
    steps = steps_of(entry, -(-shared.num_rows // entry.batch_size))
    sheet.num_steps[row, at] = steps
    sheet.compute_seconds[row, at] = sheet.middle_seconds[row, at] = steps * step_seconds


def _fill_cut(
    sheet: PriceSheet, row: int, entry: Assignment, cost: StepCost, shared: Shape, server: VirtualServer
) -> None:
    riders, at, share = _riders(entry, cost, shared), shared.clients, cost.longest.server
    assert share is not None, "a cut has a share of the server"
    sweep_seconds = server.ride_seconds(share, riders.server_flops)
    sheet.num_steps[row, at] = riders.num_steps // entry.rides_per_step
    sheet.compute_seconds[row, at] = riders.compute_seconds
    sheet.middle_seconds[row, at] = riders.seconds_alone(shared.device, sweep_seconds)
    sheet.boundary_up_bytes[row, at] = riders.up_bytes
    sheet.boundary_down_bytes[row, at] = riders.down_bytes
    sheet.server_seconds[row, at] = riders.num_steps * sweep_seconds
    sheet.server_bytes[row, at] = server.needed_bytes(share)


def _riders(entry: Assignment, cost: StepCost, shared: Shape) -> Riders:
    assert shared.num_tokens is not None, "a cohort under cuts says how many real tokens its clients hold"
    return Riders.of(cost, entry, shared.device, shared.num_rows, shared.num_tokens)


def _needed(server: VirtualServer | None, entry: Assignment) -> VirtualServer:
    if server is None:
        raise PolicyError(
            f"{entry} needs a server, and this run has none; give menu.cuts, or no assignment with a cut."
        )
    return server
