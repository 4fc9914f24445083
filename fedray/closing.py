"""A round on the virtual clock: the trips of those who were given something, and what they then hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from fedray.assignment import Assignment, Attention
from fedray.battery import Charges, Drain
from fedray.clock import ClosedRound, close_round, draw_dropouts, steps_in_time
from fedray.cost import Device, Ints, WorkShape
from fedray.holdings import Holdings
from fedray.policy import Cohort, Pace
from fedray.price_sheet import compute_seconds_of, riders_of
from fedray.scene import Scene
from fedray.scheduler import Terms
from fedray.shared_link import SharedLink
from fedray.trips import Trips
from fedray.units import show_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outing:
    """The clients of a round that were given something; arrays and sequences are [clients].

    Attributes:
        cohort: as they declare themselves; ``device`` what they really are.
        begins: virtual seconds from the run's start at which they are asked.
        given: what each does; ``num_steps`` of its steps.
        terms: the prices of it.
        peak_bytes: as far as audits of such work have shown more than was predicted; else 0.
    """

    cohort: Cohort
    device: Device
    begins: float
    given: Sequence[Assignment]
    num_steps: Ints
    terms: Terms
    peak_bytes: Ints


def trips_of(scene: Scene, outing: Outing) -> Trips:
    """What they set out to do, at the rates and in the memory that they really have."""
    terms, given = outing.terms, outing.given
    seconds, riders = terms.compute_seconds, terms.riders
    if not scene.actual.as_declared:
        really = replace(outing.cohort, device=outing.device)
        seconds = compute_seconds_of(given, really, scene.footprint, scene.server)
        riders = riders_of(given, really, scene.footprint)[0]
    # Whoever does fewer steps than its assignment says computes for as much less.
    part = outing.num_steps < terms.num_steps
    seconds = np.where(part, outing.num_steps * (seconds / np.maximum(terms.num_steps, 1)), seconds)
    return Trips(
        client_ids=outing.cohort.client_ids,
        device=outing.device,
        fits=np.maximum(outing.peak_bytes, terms.peak_bytes) <= outing.device.memory_bytes,
        compute_seconds=seconds,
        up_bytes=terms.up_bytes,
        down_bytes=terms.down_bytes,
        provision_bytes=terms.provision_bytes,
        riders=None if scene.server is None else riders,
        server=scene.server,
        shared_link=_shared_link(scene),
        drain=_drain(scene, outing),
    )


def _drain(scene: Scene, outing: Outing) -> Drain | None:
    """Their batteries as they set out; None where all are on mains."""
    charge = outing.cohort.charge_joules
    if scene.batteries is None or charge is None:
        return None
    ids, begins = outing.cohort.client_ids, outing.begins
    return Drain(batteries=scene.batteries, client_ids=ids, begins_seconds=begins, charge_joules=charge)


def _shared_link(scene: Scene) -> SharedLink | None:
    """The server's own, where the configuration says that it may be short."""
    given = scene.config.server_link
    if given.up_bps is None and given.down_bps is None:
        return None
    return SharedLink(up_bps=given.up_bps, down_bps=given.down_bps)


def short_of_charge(closed: ClosedRound, place: int) -> str:
    """That a client's battery ran empty; nothing if it has not."""
    empty = closed.emptied is not None and closed.emptied[place] and closed.outcomes[place] == "dropped"
    return "its battery was empty" if empty else ""


def charge_at_start(cohort: Cohort, place: int) -> float | None:
    """What was in a client's battery as it was asked; None on mains."""
    charge = None if cohort.charge_joules is None else float(cohort.charge_joules[place])
    return None if charge is None or np.isinf(charge) else charge


def within_deadline(scene: Scene, outing: Outing) -> Outing:
    """The same with as many steps of each as the deadline allows, where the pace takes partial work."""
    deadline = scene.pace.deadline_seconds
    if scene.pace.late != "partial" or deadline is None:
        return outing
    steps = steps_in_time(trips_of(scene, outing), outing.num_steps, deadline)
    return replace(outing, num_steps=steps)


def short_of_memory(has_bytes: int, declared_bytes: int) -> str:
    """Why a client ran out of memory that has less than it declares; empty if it has not."""
    if has_bytes >= declared_bytes:
        return ""
    return f"it has {show_bytes(has_bytes)} and declares {show_bytes(declared_bytes)}"


def close_on_clock(
    scene: Scene,
    holdings: Holdings,
    charges: Charges,
    outing: Outing,
    pace: Pace | None = None,
    trips: Trips | None = None,
) -> ClosedRound:
    """Who arrives, who is late, dropped or out of memory; whoever received everything now holds it.

    Args:
        scene: of the run.
        holdings: of its clients, which are told what they received.
        charges: of their batteries, which are told what is left.
        outing: of the round's clients.
        pace: at which the round closes; the run's if absent.
        trips: of the outing, beside those who are on their way already; as in a round by itself if absent.
    """
    cohort, leaves = outing.cohort, None
    if scene.config.dropouts:
        availability = scene.fleet.availability(cohort.client_ids)
        leaves = draw_dropouts(scene.config.seed, cohort.round, cohort.client_ids, availability)
    offline = np.minimum(
        scene.presence.until(cohort.client_ids, outing.begins) - outing.begins,
        scene.actual.crash_seconds(cohort.client_ids, cohort.round),
    )
    closed = close_round(trips or trips_of(scene, outing), pace or scene.pace, leaves, offline)
    _receive(scene, holdings, outing, np.flatnonzero(closed.received))
    if scene.batteries is not None and closed.charge_joules is not None:
        ends = outing.begins + closed.client_seconds
        charges.leave(scene.batteries, cohort.client_ids, closed.charge_joules, ends)
    return closed


def _receive(scene: Scene, holdings: Holdings, outing: Outing, received: Ints) -> None:
    """These clients hold what they were sent, those with one assignment together."""
    cohort = outing.cohort
    alike: dict[Assignment, list[int]] = {}
    for place in received.tolist():
        alike.setdefault(outing.given[place], []).append(place)
    for assignment, places in alike.items():
        # What must be held is the same for every shape of the work.
        shape = WorkShape(
            rows=assignment.batch_size,
            tokens=int(cohort.tokens[places[0]]),
            attention=cast(Attention, str(cohort.attention[places[0]])),
        )
        held_bytes = scene.footprint(assignment, shape).held_bytes
        storage = cohort.device.storage_bytes[places]
        holdings.receive(cohort.client_ids[places], held_bytes, assignment.dtype, storage)
