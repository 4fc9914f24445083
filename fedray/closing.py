"""A round on the virtual clock: the trips of those who were given something, and what they then hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from fedray.assignment import Assignment, Attention
from fedray.clock import ClosedRound, Trips, close_round, draw_dropouts
from fedray.cost import Ints, WorkShape
from fedray.holdings import Holdings
from fedray.policy import Cohort
from fedray.scene import Scene
from fedray.scheduler import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Outing:
    """The clients of a round that were given something; arrays and sequences are [clients].

    Attributes:
        given: what each does.
        terms: the prices of it.
        peak_bytes: as far as audits of such work have shown more than was predicted; else 0.
    """

    cohort: Cohort
    given: Sequence[Assignment]
    terms: Terms
    peak_bytes: Ints


def close_on_clock(scene: Scene, holdings: Holdings, outing: Outing) -> ClosedRound:
    """Who arrives, who is late, dropped or out of memory; whoever received everything now holds it."""
    cohort, terms = outing.cohort, outing.terms
    trips = Trips(
        client_ids=cohort.client_ids,
        device=cohort.device,
        fits=np.maximum(outing.peak_bytes, terms.peak_bytes) <= cohort.device.memory_bytes,
        compute_seconds=terms.compute_seconds,
        up_bytes=terms.up_bytes,
        down_bytes=terms.down_bytes,
        provision_bytes=terms.provision_bytes,
        riders=None if scene.server is None else terms.riders,
        server=scene.server,
    )
    leaves = None
    if scene.config.dropouts:
        availability = scene.fleet.availability(cohort.client_ids)
        leaves = draw_dropouts(scene.config.seed, cohort.round, cohort.client_ids, availability)
    closed = close_round(trips, scene.pace, leaves)
    _receive(scene, holdings, outing, np.flatnonzero(closed.received))
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
