"""What is averaged when: with an interval, the clients' own sides of their cuts only every so many rounds.

In between a client that is asked again goes on with its own side, and nothing of it crosses a link; the
server's sides are averaged every round. Whoever has another assignment now, so that its own side has other
sites or ranks, starts from the global state. What a client changed since the last averaging is lost if it is
not among those who send their updates in the round of the next one: after an averaging everybody starts from
the global state. Whole models are averaged every round.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedray.adapter import Adapter
from fedray.assignment import Assignment
from fedray.cost import Footprint, Ints, WorkShape
from fedray.model.wire import wire_bytes
from fedray.policy import Bools
from fedray.progress import Progress
from fedray.scene import Scene
from fedray.training.job import ClientState, Job, message
from fedray.training.observables import values_on_meta
from fedray.training.own_side import OwnSide, Shapes, shapes_of, without_own_side
from fedray.training.shapes import empty_adapter, site_ranks
from fedray.training.shares import client_share, learnt_above, server_share


def handed_out(
    scene: Scene, kept: ClientState, assignment: Assignment, start: Adapter
) -> tuple[Adapter, ClientState]:
    """What is sent to a client for a round, and what of its own it takes along.

    Args:
        scene: of the run.
        kept: by the client.
        assignment: its own for the round.
        start: what a client that keeps nothing is sent.
    """
    own = OwnSide.of(kept)
    if own is None:
        return start, kept
    if assignment.split and own.suits(client_share(scene.anatomy, assignment, start)):
        return server_share(scene.anatomy, assignment, start), kept
    return start, without_own_side(kept)


def who_goes_on(scene: Scene, progress: Progress) -> Callable[[Assignment, Ints], Bools] | None:
    """Tells which of these clients would go on with their own side; None where nobody kept any."""
    owners: dict[Shapes, list[int]] = {}
    for client, kept in progress.client_states.items():
        own = OwnSide.of(kept)
        if own is not None:
            owners.setdefault(shapes_of(own.begun), []).append(client)
    if not owners:
        return None

    def go_on(assignment: Assignment, client_ids: Ints) -> Bools:
        if not assignment.split:
            return np.zeros(len(client_ids), np.bool_)
        return np.isin(client_ids, owners.get(shapes_of(_share_below(scene, assignment)), []))

    return go_on


def as_sent_up(
    scene: Scene, footprint_of: Callable[[Assignment, WorkShape], Footprint], round_number: int
) -> Callable[[Assignment, WorkShape], Footprint]:
    """Footprints with what goes up in this round: what a policy asked about, where own sides stay."""
    if scene.averages(round_number):
        return footprint_of
    values = values_on_meta(scene.policy.observables, scene.anatomy.num_blocks, split=True)
    told = wire_bytes(message({}, values))

    def footprint(assignment: Assignment, shape: WorkShape) -> Footprint:
        found = footprint_of(assignment, shape)
        return replace(found, up_bytes=told) if assignment.split else found

    return footprint


def averaged_ranks(scene: Scene, job: Job) -> dict[str, int]:
    """The ranks of those sites of a job whose factors are averaged after its round."""
    ranks = site_ranks(scene.anatomy, job.assignment)
    if not (job.keeps_own_side or job.assignment.is_black_box):
        return ranks
    empty = _empty(scene, job.assignment)
    sites = set(learnt_above(scene.anatomy, job.assignment, empty).factors)
    if not job.keeps_own_side:
        sites |= set(client_share(scene.anatomy, job.assignment, empty).factors)
    return {site: rank for site, rank in ranks.items() if site in sites}


def after_averaging(progress: Progress) -> dict[int, ClientState]:
    """What those who had an own side keep once all own sides have been averaged, or lost."""
    states = progress.client_states.items()
    return {client: without_own_side(kept) for client, kept in states if OwnSide.of(kept) is not None}


def trains_below(scene: Scene, assignment: Assignment) -> bool:
    """Whether a client with this assignment has an own side to keep."""
    return assignment.split and bool(_share_below(scene, assignment).tensors())


def _share_below(scene: Scene, assignment: Assignment) -> Adapter:
    return client_share(scene.anatomy, assignment, _empty(scene, assignment))


def _empty(scene: Scene, assignment: Assignment) -> Adapter:
    return empty_adapter(scene.anatomy, assignment, scene.num_labels, "meta")
