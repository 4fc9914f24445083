"""The global adapter on rows that nobody trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import WEIGHTS, Adapter
from fedray.assignment import Assignment
from fedray.model.sites import Installed, StackedFactors, alone
from fedray.training.data import TOKEN_MULTIPLE, Rows, bucket
from fedray.training.packed import Backbone, Course, PackedForward, course_of
from fedray.training.parted import Middle, PartedForward, Span
from fedray.training.shares import in_blocks
from fedray.training.task import Forward
from fedray.training.train import Workshop

Outputs = list[Mapping[str, Any]]


# Padded tokens of one chunk: a causal LM's logits over them are what evaluation holds at most.
CHUNK_TOKENS = 4096


def evaluation_chunks(lengths: Rows, rows: Rows) -> list[Rows]:
    """Rows grouped by like length, at most `CHUNK_TOKENS` padded tokens a chunk, but at least one row."""
    chunks: list[Rows] = []
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    while len(ordered):
        longest = -(-int(lengths[ordered[0]]) // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        size = max(1, CHUNK_TOKENS // longest)
        chunks.append(ordered[:size])
        ordered = ordered[size:]
    return chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Blocks from ``first`` up to ``end`` that the server runs in an evaluation."""

    first: int
    end: int
    middle: Middle


def evaluate_rows(
    workshop: Workshop,
    adapter: Adapter,
    rows: Rows,
    elsewhere: Elsewhere | None = None,
    model: Assignment | None = None,
) -> Outputs:
    """What the task keeps of each row, in the order of ``rows``; one forward pass without gradient.

    Args:
        workshop: of this process.
        adapter: the global one, its weights as wide as the model.
        rows: of the pool.
        elsewhere: the blocks that this process need not have; None if it runs all.
        model: without a cut, whose blocks, width and bits are run; None for the whole model.
    """
    backbone = workshop.evaluated if model is None else workshop.backbone_of(model)
    longest = int(workshop.pool.lengths[rows].max())
    tokens = bucket(longest, TOKEN_MULTIPLE, workshop.max_length)
    device = workshop.device
    batch = {name: t.to(device) for name, t in workshop.pool.batch(rows, tokens).items()}
    factors: dict[str, StackedFactors | Tensor] = {
        site: alone(own, device) for site, own in adapter.factors.items()
    }
    factors |= {WEIGHTS + name: tensor[None].to(device) for name, tensor in adapter.weights.items()}
    head = {name: tensor[None].to(device) for name, tensor in adapter.head.items()}
    with torch.no_grad():
        if model is not None:
            course = course_of(model, "memory_efficient", recompute=False)
            return workshop.task.outputs(PackedForward(backbone, course, factors, head), batch)
        return workshop.task.outputs(_forward(backbone, adapter, factors, head, elsewhere), batch)


def _forward(
    backbone: Backbone,
    adapter: Adapter,
    factors: Installed,
    head: Mapping[str, Tensor],
    elsewhere: Elsewhere | None,
) -> Forward:
    blocks = range(backbone.anatomy.num_blocks)
    if elsewhere is None:
        return PackedForward(backbone, Course(blocks=tuple(blocks)), factors, head)
    first, end = elsewhere.first, elsewhere.end
    theirs = in_blocks(backbone.anatomy, adapter.factors, blocks[first:end])
    return PartedForward(
        backbone, Span(first=first, end=end, factors=theirs), elsewhere.middle, factors, head
    )


def in_order(rows: Rows, chunks: Sequence[Rows], outputs: Sequence[Outputs]) -> Outputs:
    """Chunked outputs put back into the order of ``rows``."""
    by_row = {
        int(row): output
        for chunk, found in zip(chunks, outputs, strict=True)
        for row, output in zip(chunk, found, strict=True)
    }
    return [by_row[int(row)] for row in rows]
