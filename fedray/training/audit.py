"""Audits: one client run alone under the live counter, held to the memory it declares.

Packs train uncounted, for a live counter costs much on small work; each distinct (assignment, work
shape) of a run is audited once, and its verdict holds for every client that does the same work.
"""

import itertools
from dataclasses import dataclass, replace

import torch

from fedray.cost import PeakTerms
from fedray.model.counter import ByteCounter, Terms
from fedray.training.boundary import read_by_loss
from fedray.training.client_half import ClientHalf
from fedray.training.held import weights
from fedray.training.job import Job
from fedray.training.link import owed_like
from fedray.training.lone_client import LoneClient
from fedray.training.shares import client_share
from fedray.training.train import Workshop, train_pack

# Every step of a job is alike but for its length: the longest batch and one more show the peak.
AUDITED_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What one client alone held at most, by term; ``over_limit`` if it was stopped for it."""

    peak_bytes: int
    terms: PeakTerms
    over_limit: bool


class OverLimit(Exception):
    """The counter passed its limit; the client's step is given up, as a device would."""


class LimitedCounter(ByteCounter):
    """A byte counter that ends the step that passes ``limit_bytes``: memory as a hard fact."""

    def __init__(self, limit_bytes: int | None) -> None:
        """Args: limit_bytes: None counts without a limit."""
        super().__init__()
        self._limit = limit_bytes

    def _note_peak(self) -> None:
        super()._note_peak()
        if self._limit is not None and self.alive > self._limit:
            raise OverLimit(f"{self.alive} bytes alive, {self._limit} allowed")


def audit(workshop: Workshop, job: Job, limit_bytes: int | None = None) -> Audit:
    """Train one client alone, as its device would, and count; under a cut its own side.

    Args:
        workshop: of this process.
        job: whose longest batch and one more are run, with recomputation where the assignment asks.
        limit_bytes: end the client there; None only counts.
    """
    short = replace(job, assignment=replace(job.assignment, max_steps=min(job.num_steps, AUDITED_STEPS)))
    backbone = workshop.backbone_of(job.assignment)
    counter = LimitedCounter(limit_bytes)
    over_limit = False
    try:
        counter.hold(weights(backbone.anatomy, job.assignment), "weights")
        own = client_share(backbone.anatomy, job.assignment, job.sent).tensors()
        owed = [torch.zeros_like(tensor) for tensor in owed_like(own, job.assignment)]
        counter.hold(owed, "optimizer")
        if job.assignment.split:
            _train_below_the_cut(workshop, short, counter)
        else:
            with counter:
                train_pack(workshop, [short], recompute=True, observer=counter)
    except OverLimit:
        over_limit = True
    terms: Terms = counter.peak_terms
    return Audit(peak_bytes=counter.peak, terms=PeakTerms(**terms), over_limit=over_limit)


def _train_below_the_cut(workshop: Workshop, job: Job, counter: ByteCounter) -> None:
    # Clipping both sides as one takes a number more than clipping alone.
    half = ClientHalf(
        workshop,
        [job],
        _read_above_the_cut(workshop, job),
        clips_as_one=True,
        recompute=True,
        observer=counter,
    )
    client = LoneClient(half, job, counter, counter)
    for number in itertools.count():
        if not client.up(number):
            return
        client.turn()
        client.back()


def _read_above_the_cut(workshop: Workshop, job: Job) -> tuple[str, ...]:
    row = workshop.partitions[job.client_id][:1]
    batch = workshop.pool.batch(row, int(workshop.pool.lengths[row].max()))
    config = workshop.backbones[job.assignment.dtype].anatomy.model.config
    num_outputs = len(job.sent.head["bias"]) if job.sent.head else config.vocab_size
    return read_by_loss(workshop.task, {name: t.to("meta") for name, t in batch.items()}, num_outputs)
