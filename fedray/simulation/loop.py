"""One simulated round, in step or overlapping: it selects, prices, decides and closes as a run does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

from fedray.assignment import Assignment
from fedray.battery import Charges
from fedray.clock import ClosedRound
from fedray.closing import (
    Outing,
    charge_at_start,
    close_on_clock,
    short_of_charge,
    short_of_memory,
    within_deadline,
)
from fedray.cost import Footprint, WorkShape
from fedray.holdings import Holdings
from fedray.landing import Leaving, called_off, play_until_closed
from fedray.observable import Observable
from fedray.policy import Cohort, State
from fedray.privacy import highest_cut_epsilon, sampling_rate, with_cut_epsilon, with_epsilon
from fedray.progress import history_of
from fedray.readiness import Readiness, view_of
from fedray.record import ClientRecord, RoundRecord, summed
from fedray.scene import Scene
from fedray.scheduler import Pricing, Schedule, ask_menu, ask_selection, decide, price_menu
from fedray.simulation.replay import Recorded
from fedray.told import held_so_far
from fedray.underway import UnderWay

# What a policy is shown of every client where nobody trains.
_LOSS = 1.0


@dataclass(slots=True, kw_only=True)
class Simulated:
    """The one thing that a simulation changes, round by round.

    Attributes:
        under_way: who is at work between rounds, where these overlap.
        version: of a state that nobody trains: rounds so far in which an update counted.
        history: what a policy sees of the rounds.
    """

    pricing: Pricing
    holdings: Holdings
    charges: Charges = field(default_factory=Charges)
    under_way: UnderWay = field(default_factory=UnderWay)
    version: int = 0
    policy_state: State = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    clients: list[ClientRecord] = field(default_factory=list)
    history: list[Mapping[str, Any]] = field(default_factory=list)

    @staticmethod
    def at_start(scene: Scene) -> "Simulated":
        """Before the first round."""
        holdings = Holdings(scene.num_clients, preinstalled=scene.config.provision == "preinstalled")

        @cache
        def footprint_of(assignment: Assignment, shape: WorkShape) -> Footprint:
            return scene.footprint(assignment, shape)

        pricing = Pricing(footprint_of=footprint_of, holdings=holdings, server=scene.server)
        return Simulated(pricing=pricing, holdings=holdings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Played:
    """A round before it is recorded; ``policy_state`` before the policy learns from it."""

    clients: list[ClientRecord]
    policy_state: State
    virtual_seconds: float
    server_joules: float = 0.0
    sampling_rate: float | None = None


def play_round(
    scene: Scene, simulated: Simulated, number: int, recorded: Recorded | None, started: float
) -> RoundRecord:
    """One round; what it came to is in ``simulated``.

    Args:
        scene: of the simulation.
        simulated: so far.
        number: of the round, from 1.
        recorded: the run that is replayed.
        started: when the round began, by `time.perf_counter`.

    Raises:
        SimulationError: the recorded run decided otherwise.
    """
    play = _overlapping if scene.pace.joins else _in_step
    played = play(scene, simulated, number)
    clients = with_cut_epsilon(scene.config, scene.tokens, simulated.clients, played.clients)
    if recorded is not None:
        clients = recorded.replayed(number, clients)
    told = _told(scene, clients)
    simulated.policy_state = scene.policy.observe(told, played.policy_state)
    simulated.history += told
    simulated.clients += clients
    wall_seconds = perf_counter() - started
    record = replace(
        summed(number, clients, virtual_seconds=played.virtual_seconds, wall_seconds=wall_seconds),
        server_joules=played.server_joules,
        sampling_rate=played.sampling_rate,
        cut_epsilon=highest_cut_epsilon(simulated.rounds, clients),
    )
    record = with_epsilon(scene.privacy, record, simulated.rounds, simulated.clients)
    if recorded is not None:
        record = recorded.scored(record)
    simulated.rounds.append(record)
    return record


def _in_step(scene: Scene, simulated: Simulated, number: int) -> _Played:
    """A round whose clients set out together."""
    elapsed = float(sum(record.virtual_seconds for record in simulated.rounds))
    pricing = simulated.pricing
    ready = Readiness(scene=scene, number=number, charges=simulated.charges, pricing=pricing)
    opens = ready.begins(elapsed)
    view = view_of(ready, simulated.history, opens)
    menu = ask_menu(scene.policy, view)
    view = replace(view, offers_of=lambda ids: price_menu(menu, ready.cohort(ids, opens), pricing))
    chosen, policy_state = ask_selection(scene.policy, view, simulated.policy_state)
    begins, present = ready.asked(chosen, opens)
    cohort = ready.cohort(present, begins)
    schedule = decide(scene.policy, cohort, price_menu(menu, cohort, pricing), policy_state, pricing)
    outing = within_deadline(scene, _outing_of(scene, cohort, schedule, begins))
    closed = close_on_clock(scene, simulated.holdings, simulated.charges, outing)
    return _Played(
        clients=_records(scene, outing, closed, simulated.holdings),
        policy_state=schedule.state,
        virtual_seconds=begins - elapsed + closed.virtual_seconds,
        server_joules=closed.server_joules,
        sampling_rate=sampling_rate(scene.privacy, view),
    )


def _overlapping(scene: Scene, simulated: Simulated, number: int) -> _Played:
    """A round that closes while others are on their way."""
    playing = _Playing(scene, simulated)
    landed = play_until_closed(playing, number)
    clients = landed.clients
    if number == scene.config.rounds.num_rounds:
        clients = clients + called_off(playing, number)
    simulated.version += bool(landed.buffer)
    return _Played(
        clients=clients,
        policy_state=simulated.policy_state,
        virtual_seconds=landed.virtual_seconds,
        server_joules=landed.server_joules,
    )


@dataclass(slots=True)
class _Playing:
    """`fedray.landing.Playing` for a simulation, in which nobody trains."""

    scene: Scene
    book: Simulated

    @property
    def version(self) -> int:
        return self.book.version

    def history(self) -> Sequence[Mapping[str, object]]:
        return self.book.history

    def pricing(self, number: int) -> Pricing:
        return self.book.pricing

    def leaving(self, cohort: Cohort, schedule: Schedule, begins: float) -> Leaving:
        scene, holdings = self.scene, self.book.holdings
        outing = _outing_of(scene, cohort, schedule, begins)
        return Leaving(outing=outing, told=lambda closed: _records(scene, outing, closed, holdings))


def _outing_of(scene: Scene, cohort: Cohort, schedule: Schedule, begins: float) -> Outing:
    """Those who were given something, with all their steps."""
    given = schedule.decision.assignments
    places = np.array([i for i, assignment in enumerate(given) if assignment is not None], np.int64)
    asked, terms = cohort.take(places), schedule.terms.take(places)
    return Outing(
        cohort=asked,
        device=scene.actual.device(asked.device, asked.client_ids, asked.round, begins),
        begins=begins,
        given=[assignment for assignment in given if assignment is not None],
        terms=terms,
        num_steps=terms.num_steps,
        peak_bytes=np.zeros(len(places), np.int64),
    )


def _records(scene: Scene, outing: Outing, closed: ClosedRound, holdings: Holdings) -> list[ClientRecord]:
    """One row per client that was given something, without what training would add."""
    as_text = cache(Assignment.to_json)
    cohort = outing.cohort
    columns = _columns(scene, outing, closed)
    sizes = scene.anatomy.piece_bytes()
    held = [held_so_far(holdings, client, sizes) for client in columns["client_id"]]
    columns["charge_joules"] = [charge_at_start(cohort, place) for place in range(len(cohort))]
    columns |= {"held_blocks": [blocks for blocks, _ in held], "held_share": [share for _, share in held]}
    memory = zip(outing.device.memory_bytes.tolist(), cohort.device.memory_bytes.tolist(), strict=True)
    why = [
        short_of_memory(has, says) if outcome == "oom" else short_of_charge(closed, place)
        for place, (outcome, (has, says)) in enumerate(zip(closed.outcomes, memory, strict=True))
    ]
    return [
        ClientRecord(
            round=cohort.round,
            assignment=as_text(assignment),
            measured_peak_bytes=None,
            wall_seconds=None,
            loss=None,
            attempts=0,
            message=message,
            outcome=outcome,
            cut=assignment.cut if assignment.split else None,
            leakage=scene.leaked(assignment),
            start_seconds=outing.begins,
            **dict(zip(columns, values, strict=True)),
        )
        for assignment, outcome, message, *values in zip(
            outing.given, closed.outcomes, why, *columns.values(), strict=True
        )
    ]


def _columns(scene: Scene, outing: Outing, closed: ClosedRound) -> dict[str, list[Any]]:
    cohort, terms = outing.cohort, outing.terms
    padding = scene.padding_bytes(outing.given, cohort.tokens.tolist(), cohort.attention.tolist())
    arrays = {
        "client_id": cohort.client_ids,
        "device_class": cohort.device_class,
        "memory_bytes": cohort.device.memory_bytes,
        "predicted_peak_bytes": terms.peak_bytes,
        "predicted_up_bytes": terms.up_bytes,
        "predicted_down_bytes": terms.down_bytes,
        "up_bytes": closed.up_bytes,
        "down_bytes": closed.down_bytes,
        "provision_bytes": closed.provision_bytes,
        "num_rows": cohort.num_rows,
        "num_steps": outing.num_steps,
        "virtual_seconds": closed.client_seconds,
        "joules": closed.joules,
        "waiting_seconds": closed.waiting_seconds,
        "boundary_up_bytes": closed.boundary_up_bytes,
        "boundary_down_bytes": closed.boundary_down_bytes,
        "predicted_boundary_up_bytes": terms.boundary_up_bytes,
        "predicted_boundary_down_bytes": terms.boundary_down_bytes,
        "num_messages": closed.num_messages,
        "predicted_seconds": terms.virtual_seconds,
        "padding_bytes": np.where([outcome == "ok" for outcome in closed.outcomes], padding, 0),
        "receive_seconds": closed.receive_seconds,
        "compute_seconds": closed.compute_seconds,
        "send_seconds": closed.send_seconds,
    }
    return {name: array.tolist() for name, array in arrays.items()}


def _told(scene: Scene, clients: Sequence[ClientRecord]) -> list[Mapping[str, Any]]:
    """The rows as a policy sees them: what training would show is alike for all, or a recorded run's."""
    names, num_blocks = scene.policy.observables, scene.anatomy.num_blocks
    rows: list[Mapping[str, Any]] = []
    given = cache(Assignment.from_json)
    for seen, record in zip(history_of(clients), clients, strict=True):
        row, assignment = dict(seen), given(record.assignment)
        if row["outcome"] == "ok" and row["loss"] is None:
            row["loss"] = _LOSS
            row["statistics"] = {name: _shown(name, assignment, num_blocks) for name in names}
        rows.append(row)
    return rows


def _shown(name: Observable, assignment: Assignment, num_blocks: int) -> np.ndarray:
    """What stands for an observable where nobody trains: losses and blocks are alike, no rank shrinks."""
    match name:
        case "squared_loss":
            return np.array([_LOSS**2])
        case "kept_rank":
            return np.array([float(assignment.max_rank)])
        case _:
            return _by_block(assignment, num_blocks)


def _by_block(assignment: Assignment, num_blocks: int) -> np.ndarray:
    """One of every block that the client trains itself; not a number of the others, as a run has it."""
    values, trained = np.full(num_blocks, np.nan), assignment.trained
    own = assignment.client_blocks(num_blocks) if assignment.split else assignment.blocks
    for place, block in enumerate(own):
        # Under a cut there are ranks of the server's blocks, too.
        if trained and trained[block if assignment.split else place]:
            values[block] = 1.0
    return values
