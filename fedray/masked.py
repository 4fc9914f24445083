"""Secure aggregation in a round: who agrees on masks with whom, and whether enough came to take them away."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from fedray.adapter import GlobalState
from fedray.errors import PolicyError
from fedray.masking import Masking
from fedray.scene import Scene
from fedray.training.job import Job

# Of a single client the sum is its update.
_FEWEST = 2


def with_masks(scene: Scene, state: GlobalState, jobs: Sequence[Job], weights: Sequence[float]) -> list[Job]:
    """The jobs of a round with what their clients agree on; as they are without secure aggregation.

    Raises:
        PolicyError: an assignment codes its update, which masks would make senseless.
    """
    section = scene.config.secure_aggregation
    if section.masks == "none" or not jobs:
        return list(jobs)
    for job in jobs:
        if job.assignment.up_codec != "none":
            raise PolicyError(
                f"The policy gave client {job.client_id} the up_codec {job.assignment.up_codec}, and with "
                "secure_aggregation updates are masked integers; give up_codec none."
            )
    masking = Masking(
        seed=scene.config.seed,
        round=jobs[0].round,
        clients=tuple(sorted(job.client_id for job in jobs)),
        total_weight=sum(weights),
        shapes={name: tuple(tensor.shape) for name, tensor in state.adapter.tensors().items()},
        fraction_bits=section.fraction_bits,
        needed=max(_FEWEST, ceil(section.min_survivors * len(jobs))),
    )
    return [replace(job, masking=masking, weight=weight) for job, weight in zip(jobs, weights, strict=True)]


def lost_for_want_of_others(jobs: Sequence[Job], num_came: int) -> str:
    """Why the sum of a round stays masked; empty if it does not."""
    masking = jobs[0].masking if jobs else None
    if masking is None or num_came >= masking.needed:
        return ""
    return f"{num_came} of {len(masking.clients)} came, and {masking.needed} must to take the masks away"
