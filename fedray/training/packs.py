"""Who shares a forward pass.

Packs are formed from the decision alone, in client order, before anything is placed anywhere; a pack is the
unit of placement and of retry.
"""

from collections import defaultdict
from collections.abc import Sequence

from fedray.activations import blocks_in_8_bits
from fedray.assignment import Assignment, Lora
from fedray.codec_names import num_seeds
from fedray.training.job import Job
from fedray.width import Width


def form_packs(jobs: Sequence[Job], clients_per_pack: int) -> list[tuple[Job, ...]]:
    """Jobs that can share a forward pass, at most so many, those of like depth, length and steps together.

    Recompute is no part of it: it changes what a client holds, not what it computes.
    """
    groups: dict[tuple[object, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        a = job.assignment
        adapted = (a.adapter.targets, a.adapter.train_a) if isinstance(a.adapter, Lora) else a.adapter
        cut = a.split, a.tail, a.local_loss, a.cut_codec, a.frozen_bottom, _trained_sides(a)
        frozen = a.dtype, a.weight_bits, a.sparsity, _part(a)
        # Other codecs come after training; shared seeds are what directions are drawn from.
        drawn = a.exits, a.perturbations, num_seeds(a.up_codec), a.ordered, _rounded(a)
        # Where rounds overlap clients that were asked in several of them train together.
        asked = job.learning_rate_scale, job.round if a.exits else None
        groups[a.blocks, drawn, cut, frozen, a.batch_size, adapted, job.attention, asked].append(job)
    packs: list[tuple[Job, ...]] = []
    for group in groups.values():
        alike = sorted(group, key=_likeness)
        for start in range(0, len(alike), clients_per_pack):
            packs.append(tuple(sorted(alike[start : start + clients_per_pack], key=lambda j: j.client_id)))
    return packs


def _part(a: Assignment) -> Width | None:
    """What of the frozen model a pack shares; where nothing is frozen its size alone."""
    return a.width.at_start() if a.width is not None and a.trains_all_it_holds else a.width


def _rounded(a: Assignment) -> range:
    return blocks_in_8_bits(a.first_trained_block, a.int8_activations)


def _trained_sides(a: Assignment) -> tuple[bool, bool]:
    """Whether blocks of the client and of the server are trained: a side without any tells no norm."""
    if not a.split or not isinstance(a.adapter, Lora):
        return False, False
    ranks = a.adapter.ranks
    own = set(a.client_blocks(len(ranks)))
    return any(ranks[b] for b in own), any(ranks[b] for b in range(len(ranks)) if b not in own)


def _likeness(job: Job) -> tuple[int, int, int, int, int]:
    a = job.assignment
    return -(a.first_trained_block or 0), job.num_steps, job.tokens, a.max_rank, job.client_id
