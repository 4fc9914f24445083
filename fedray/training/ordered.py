"""Ordered dropout: in every local step a client trains a leading part of what it holds, drawn for the step.

FjORD (NeurIPS 2021). The step runs at the client's own width with everything beyond the part at zero. With
parts of heads and feed-forward units that is the narrower model's forward exactly, and what is zero gets no
gradient; so clients that draw unlike parts still share a forward. A device could skip what is zero: the
footprint is that of the widest part, an upper bound.

Letters of shapes: M clients that take a step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import WEIGHTS, Place
from fedray.model.anatomy import Anatomy
from fedray.model.slices import places_of
from fedray.seeds import generator
from fedray.training.job import Job
from fedray.width import Width

Masks = Mapping[str, tuple[Tensor | None, ...]]


class OrderedSteps:
    """Which part each client of a pack trains in its next step, and the weights of that part."""

    def __init__(self, jobs: Sequence[Job], whole: Anatomy, device: str) -> None:
        """Args: jobs: of a pack, with ordered dropout; ``whole``: the model that parts are counted in."""
        assignment = jobs[0].assignment
        assert assignment.ordered is not None, "asked for of clients that draw widths"
        own = places_of(whole, assignment.width)
        shapes = {name: tuple(tensor.shape) for name, tensor in whole.model.named_parameters()}
        shares = assignment.ordered.shares
        parts = [places_of(whole, Width(share=share, axes=assignment.ordered.axes)) for share in shares]
        touched = {name for part in parts for name in part}
        # The last is all that the client holds.
        self._masks: list[Masks] = [
            {name: _masks(own.get(name), part.get(name), shapes[name], device) for name in touched}
            for part in [*parts, own]
        ]
        self._jobs = jobs
        self._steps = [0] * len(jobs)

    def tensors(self) -> list[Tensor]:
        """What it keeps between steps."""
        return [mask for part in self._masks for masks in part.values() for mask in masks if mask is not None]

    def part(self, leaves: Mapping[str, Tensor], members: Sequence[int]) -> dict[str, Tensor]:
        """The members' tensors, [M, ...] each, with zeros beyond the part that each draws for this step."""
        drawn = [self._masks[self.drawn(client)] for client in members]
        return {
            name: self._cut(leaf, [masks.get(name.removeprefix(WEIGHTS), ()) for masks in drawn])
            for name, leaf in leaves.items()
        }

    def step(self, members: Sequence[int]) -> None:
        """The members have taken a step."""
        for client in members:
            self._steps[client] += 1

    def drawn(self, client: int) -> int:
        """The place of the part that a client trains next, small to large; all are as likely."""
        job = self._jobs[client]
        place = job.round, job.client_id, job.dispatch, self._steps[client]
        return int(generator(job.seed, "ordered dropout", *place).integers(len(self._masks)))

    def _cut(self, leaf: Tensor, masks: Sequence[tuple[Tensor | None, ...]]) -> Tensor:
        for axis, of_axis in enumerate(zip(*masks, strict=True), start=1):
            kept = [mask for mask in of_axis if mask is not None]
            if kept:
                shape = [len(masks)] + [1] * (leaf.dim() - 1)
                shape[axis] = leaf.shape[axis]
                leaf = leaf * torch.stack(kept).view(shape)
        return leaf


def _masks(
    own: Place | None, part: Place | None, shape: tuple[int, ...], device: str
) -> tuple[Tensor | None, ...]:
    """For each axis 1 at what a client's own part of a tensor has in common with another; None for all."""
    found: list[Tensor | None] = []
    for axis, size in enumerate(shape):
        mine, theirs = (None if place is None else place[axis] for place in (own, part))
        held = torch.arange(size) if mine is None else mine
        inside = torch.ones(len(held)) if theirs is None else torch.isin(held, theirs).float()
        found.append(inside.to(device))
    return tuple(found)
