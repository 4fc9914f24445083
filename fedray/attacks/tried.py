"""What a run tries on one update: the words or images that its client trained on, found as well as can be.

An attacker takes an update for one gradient, whatever came in between: more steps, AdamW, codecs, noise. So
what is found is a lower bound, and nothing at all where an update tells this attack nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedray.adapter import Adapter
from fedray.attacks.matching import gradients_of_images, matched
from fedray.attacks.updates import factor_recovery, most_moved, readers
from fedray.model.anatomy import Anatomy, backbone_prefix
from fedray.seeds import derive_seed
from fedray.training.data import Rows
from fedray.training.job import Job
from fedray.training.task import Batch
from fedray.training.train import Workshop

# Rows of others that the floor is taken from at most.
_OTHERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What of one update was found; sums, so that several updates add up.

    Attributes:
        found: words; or of images the sum of squared errors, the range of their numbers being one.
        floor: the same of always saying the commonest word of other rows, or their mean image.
        of: how many words, or numbers of images.
    """

    found: float
    floor: float
    of: int


def tried(workshop: Workshop, job: Job, delta: Adapter, rows: Rows, search_steps: int) -> Tried:
    """Look into an update.

    Args:
        workshop: of this process.
        job: that it is of.
        delta: as the server has it.
        rows: of the pool that its client trained on, each once.
        search_steps: of a search for images.
    """
    anatomy = workshop.evaluated.anatomy
    longest = int(workshop.pool.lengths[rows].max())
    batch = {name: t.to(workshop.device) for name, t in workshop.pool.batch(rows, longest).items()}
    apart = np.setdiff1d(np.arange(len(workshop.pool.lengths)), rows)[:_OTHERS]
    others = workshop.pool.batch(apart if len(apart) else rows, int(workshop.pool.lengths.max()))
    if anatomy.takes_text:
        return _words(anatomy, job, delta, batch, others)
    return _images(workshop, job, delta, batch, others, search_steps)


def _words(anatomy: Anatomy, job: Job, delta: Adapter, batch: Batch, others: Batch) -> Tried:
    words = batch["input_ids"][batch["attention_mask"].bool()]
    ids, counts = others["input_ids"][others["attention_mask"].bool()].unique(return_counts=True)
    commonest = int(ids[counts.argmax()])
    return Tried(
        found=words_found(anatomy, job.sent, delta, batch) * len(words),
        floor=float((words == commonest).sum()),
        of=len(words),
    )


def words_found(anatomy: Anatomy, sent: Adapter, delta: Adapter, batch: Batch) -> float:
    """The share of a batch's words that an update gives away by arithmetic.

    From a trained embedding the words that moved most, as many as there are; else from the first block, by
    the span of its weights' or factors' changes: of LoRA's A or of its B, by which of the two words stand out
    more. Zero where it has none of these.

    Args:
        anatomy: with a stem and a first block as they were before round 1.
        sent: what the client started from.
        delta: its update.
        batch: the truth.
    """
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    root = backbone_prefix(anatomy.model)
    table = delta.weights.get(f"{root}{anatomy.family.words}.weight")
    if table is not None:
        said = torch.tensor(most_moved(table, len(ids.unique())), device=ids.device)
        return float(torch.isin(ids, said).float().mean())
    sites = readers(anatomy)
    gradients = [
        _outputs_first(anatomy, site, delta.weights[name])
        for site in sites
        if (name := f"{root}{site}.weight") in delta.weights
    ]
    own = {site: delta.factors[site] for site in sites if site in delta.factors}
    gradients += [factors.a for factors in own.values() if factors.train_a]
    pairs = [(sent.factors[site].a, factors.b) for site, factors in own.items()]
    if not gradients and not pairs:
        return 0.0
    return factor_recovery(anatomy, sites[0], gradients, pairs, batch).share


def _outputs_first(anatomy: Anatomy, site: str, weight: Tensor) -> Tensor:
    return weight.T if isinstance(anatomy.backbone.get_submodule(site), Conv1D) else weight


def _images(
    workshop: Workshop, job: Job, delta: Adapter, batch: Batch, others: Batch, search_steps: int
) -> Tried:
    true, usual = batch["pixel_values"], others["pixel_values"].mean(0).to(workshop.device)
    alone = replace(job.assignment, batch_size=len(true), recompute=False)
    backbone = workshop.backbone_of(job.assignment)
    gradients_of = gradients_of_images(backbone, workshop.task, alone, job.sent, batch)
    came = delta.tensors()
    seen = [-came[name][None].to(workshop.device) for name in job.sent.tensors()]
    low, high = float(others["pixel_values"].min()), float(others["pixel_values"].max())
    seed = derive_seed(job.seed, "search for images", job.round, job.client_id)
    noise = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed)).to(workshop.device)
    guessed = matched(gradients_of, seen, low + (high - low) * noise, steps=search_steps)
    # A gradient has no order of rows: each image is held to the one that it is nearest to.
    errors = torch.cdist(guessed.flatten(1).double(), true.flatten(1).double()).square().cpu().numpy()
    pairs, spread = linear_sum_assignment(errors), (high - low) ** 2
    return Tried(
        found=float(errors[pairs].sum()) / spread,
        floor=float((true - usual).double().square().sum()) / spread,
        of=true.numel(),
    )
