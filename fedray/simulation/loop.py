"""One simulated round: select, price, decide and close as a run does, and write down what that came to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

from fedray.assignment import Assignment
from fedray.clock import ClosedRound
from fedray.closing import Outing, close_on_clock, short_of_memory, within_deadline
from fedray.cost import Footprint, WorkShape
from fedray.holdings import Holdings
from fedray.observable import Observable
from fedray.policy import State
from fedray.privacy import highest_cut_epsilon, sampling_rate, with_cut_epsilon, with_epsilon
from fedray.progress import history_of
from fedray.record import ClientRecord, RoundRecord, summed
from fedray.scene import Scene
from fedray.scheduler import Pricing, ask_menu, ask_selection, decide, price_menu
from fedray.simulation.replay import Recorded
from fedray.told import held_so_far

# What a policy is shown of every client where nobody trains.
_LOSS = 1.0


@dataclass(slots=True, kw_only=True)
class Simulated:
    """The one thing that a simulation changes, round by round; ``history`` is what a policy sees of it."""

    pricing: Pricing
    holdings: Holdings
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
    elapsed = float(sum(record.virtual_seconds for record in simulated.rounds))
    opens = scene.presence.opens(np.arange(scene.num_clients), elapsed)
    view = scene.view(number, simulated.history, opens)
    menu = ask_menu(scene.policy, view)
    pricing = simulated.pricing
    view = replace(view, offers_of=lambda ids: price_menu(menu, scene.cohort(number, ids), pricing))
    chosen, policy_state = ask_selection(scene.policy, view, simulated.policy_state)
    begins, present = scene.presence.asked(chosen, opens)
    cohort = scene.cohort(number, present)
    schedule = decide(scene.policy, cohort, price_menu(menu, cohort, pricing), policy_state, pricing)
    given = schedule.decision.assignments
    places = np.array([i for i, assignment in enumerate(given) if assignment is not None], np.int64)
    asked, terms = cohort.take(places), schedule.terms.take(places)
    outing = Outing(
        cohort=asked,
        device=scene.actual.device(asked.device, asked.client_ids, number, begins),
        begins=begins,
        given=[assignment for assignment in given if assignment is not None],
        terms=terms,
        num_steps=terms.num_steps,
        peak_bytes=np.zeros(len(places), np.int64),
    )
    outing = within_deadline(scene, outing)
    closed = close_on_clock(scene, simulated.holdings, outing)
    closed = replace(closed, virtual_seconds=begins - elapsed + closed.virtual_seconds)
    clients = _records(scene, outing, closed, simulated.holdings)
    clients = with_cut_epsilon(scene.config, scene.tokens, simulated.clients, clients)
    if recorded is not None:
        clients = recorded.replayed(number, clients)
    told = _told(scene, clients, outing.given)
    simulated.policy_state = scene.policy.observe(told, schedule.state)
    simulated.history += told
    simulated.clients += clients
    wall_seconds = perf_counter() - started
    record = replace(
        summed(number, clients, virtual_seconds=closed.virtual_seconds, wall_seconds=wall_seconds),
        server_joules=closed.server_joules,
        sampling_rate=sampling_rate(scene.privacy, view),
        cut_epsilon=highest_cut_epsilon(simulated.rounds, clients),
    )
    record = with_epsilon(scene.privacy, record, simulated.rounds, simulated.clients)
    if recorded is not None:
        record = recorded.scored(record)
    simulated.rounds.append(record)
    return record


def _records(scene: Scene, outing: Outing, closed: ClosedRound, holdings: Holdings) -> list[ClientRecord]:
    """One row per client that was given something, without what training would add."""
    as_text = cache(Assignment.to_json)
    cohort = outing.cohort
    columns = _columns(scene, outing, closed)
    sizes = scene.anatomy.piece_bytes()
    held = [held_so_far(holdings, client, sizes) for client in columns["client_id"]]
    columns |= {"held_blocks": [blocks for blocks, _ in held], "held_share": [share for _, share in held]}
    memory = zip(outing.device.memory_bytes.tolist(), cohort.device.memory_bytes.tolist(), strict=True)
    why = [
        short_of_memory(has, says) if outcome == "oom" else ""
        for outcome, (has, says) in zip(closed.outcomes, memory, strict=True)
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


def _told(
    scene: Scene, clients: Sequence[ClientRecord], given: Sequence[Assignment]
) -> list[Mapping[str, Any]]:
    """The rows as a policy sees them: what training would show is alike for all, or a recorded run's."""
    names, num_blocks = scene.policy.observables, scene.anatomy.num_blocks
    rows: list[Mapping[str, Any]] = []
    for seen, assignment in zip(history_of(clients), given, strict=True):
        row = dict(seen)
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
