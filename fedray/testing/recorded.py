"""What a run would record of a round that nobody trained: real times, made-up losses and statistics."""

from dataclasses import dataclass

import numpy as np

from fedray.assignment import Assignment
from fedray.clock import ClosedRound, close_round, draw_dropouts
from fedray.cost import Floats, Ints
from fedray.observable import Observable, statistics_to_json
from fedray.policy import Cohort, Pace, Policy
from fedray.record import ClientRecord
from fedray.scheduler import Pricing, Schedule, Terms
from fedray.seeds import generator
from fedray.testing.priced_model import BLOCKS, ranks_of
from fedray.trips import Trips


def availability(client_ids: Ints) -> Floats:
    """How likely clients stay for a round, [clients]: some leave, and most do not."""
    return np.full(len(client_ids), 0.8)


def recorded(
    seed: int, cohort: Cohort, schedule: Schedule, pricing: Pricing, policy: Policy
) -> list[ClientRecord]:
    """A row for each client that was given something, some late or gone.

    Args:
        seed: of the play.
        cohort: the round's clients.
        schedule: what they were given.
        pricing: whose server they ride.
        policy: whose pace closes the round, and whose observables are reported.
    """
    given = schedule.decision.assignments
    at = np.array([place for place, entry in enumerate(given) if entry is not None], np.int64)
    if not len(at):
        return []
    asked, terms = cohort.take(at), schedule.terms
    trips = Trips(
        client_ids=asked.client_ids,
        device=asked.device,
        fits=np.ones(len(at), np.bool_),
        compute_seconds=terms.compute_seconds[at],
        up_bytes=terms.up_bytes[at],
        down_bytes=terms.down_bytes[at],
        provision_bytes=terms.provision_bytes[at],
        riders=terms.riders.take(at),
        server=pricing.server,
    )
    leaves = draw_dropouts(seed, asked.round, asked.client_ids, availability(asked.client_ids))
    # Where the late join, every trip goes to its own end.
    pace = Pace() if policy.pace is None or policy.pace.joins else policy.pace
    closed = close_round(trips, pace, leaves)
    shut = _Shut(seed=seed, cohort=asked, closed=closed, terms=terms, at=at, observables=policy.observables)
    return [shut.row(k, entry) for k, entry in enumerate(entry for entry in given if entry is not None)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shut:
    """A round that is over; ``cohort`` and ``closed`` are of the asked, at places ``at`` of ``terms``."""

    seed: int
    cohort: Cohort
    closed: ClosedRound
    terms: Terms
    at: Ints
    observables: tuple[Observable, ...]

    def row(self, k: int, entry: Assignment) -> ClientRecord:
        cohort, closed, terms, at = self.cohort, self.closed, self.terms, int(self.at[k])
        client = int(cohort.client_ids[k])
        drawn = generator(self.seed, "records", cohort.round, client)
        ok = closed.outcomes[k] == "ok"
        return ClientRecord(
            round=cohort.round,
            client_id=client,
            device_class=str(cohort.device_class[k]),
            assignment=entry.to_json(),
            memory_bytes=int(cohort.device.memory_bytes[k]),
            predicted_peak_bytes=int(terms.peak_bytes[at]),
            measured_peak_bytes=None,
            predicted_up_bytes=int(terms.up_bytes[at]),
            predicted_down_bytes=int(terms.down_bytes[at]),
            up_bytes=int(closed.up_bytes[k]),
            down_bytes=int(closed.down_bytes[k]),
            provision_bytes=int(closed.provision_bytes[k]),
            num_rows=int(cohort.num_rows[k]),
            num_steps=int(terms.num_steps[at]),
            virtual_seconds=float(closed.client_seconds[k]),
            wall_seconds=0.0 if ok else None,
            joules=float(closed.joules[k]),
            outcome=closed.outcomes[k],
            loss=float(drawn.random()) if ok else None,
            attempts=int(ok),
            message="",
            statistics=statistics_to_json(self._statistics(entry, drawn) if ok else {}),
            cut=entry.cut if entry.split else None,
            waiting_seconds=float(closed.waiting_seconds[k]),
            boundary_up_bytes=int(closed.boundary_up_bytes[k]),
            boundary_down_bytes=int(closed.boundary_down_bytes[k]),
            predicted_boundary_up_bytes=int(terms.boundary_up_bytes[at]),
            predicted_boundary_down_bytes=int(terms.boundary_down_bytes[at]),
            num_messages=int(closed.num_messages[k]),
            predicted_seconds=float(terms.virtual_seconds[at]),
        )

    def _statistics(self, entry: Assignment, drawn: np.random.Generator) -> dict[str, list[float]]:
        """Of each block that the client trains itself; not a number elsewhere."""
        ranks = ranks_of(entry)
        own = entry.client_blocks(BLOCKS) if entry.split else entry.blocks
        trained = [block in own and ranks.get(block, 0) > 0 for block in range(BLOCKS)]
        found: dict[str, list[float]] = {
            name: np.where(trained, drawn.random(BLOCKS), np.nan).tolist() for name in self.observables
        }
        if "squared_loss" in found:
            found["squared_loss"] = found["squared_loss"][:1]
        if "kept_rank" in found:
            del found["kept_rank"]
            if not entry.split:
                found["kept_rank"] = [float(entry.max_rank - drawn.integers(0, 2) * (entry.max_rank > 1))]
        return found
