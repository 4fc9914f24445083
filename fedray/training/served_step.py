"""One step on the server for one client, on the meta device: what its ride costs, whoever else is aboard.

A ride through a `fedray.server.sweep.Sweep` of its own: through the server's blocks at padded rows, to the
loss or to what leaves for a tail, and back.

Letters of shapes: N rows, T tokens, D hidden width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.assignment import Assignment, Attention
from fedray.model.codecs import Coded, decode
from fedray.model.counter import Term
from fedray.training.boundary import coded_states, lengths_of, padded_tokens, rows_of_states
from fedray.training.packed import (
    Backbone,
    Course,
    Observer,
    Passage,
    client_means,
    head_logits,
)
from fedray.training.stack import Stack
from fedray.training.task import Answered, Batch, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the server serves.

    Attributes:
        attention: its kernel.
        recompute: activation checkpointing, block by block.
    """

    backbone: Backbone
    task: Task
    attention: Attention
    recompute: bool


def serve(
    serving: Serving,
    assignment: Assignment,
    stack: Stack,
    batch: Batch,
    came: Coded,
    observer: Observer | None = None,
) -> None:
    """Forward, backward and a step of the client's own adapter on the server; of a black box forward alone.

    Args:
        serving: by whom.
        assignment: with a cut.
        stack: the server's side of the client's adapter.
        batch: what the loss reads, with ``attention_mask`` [N, T] and ``weight`` [N].
        came: hidden states of all N * T tokens.
        observer: a byte counter, already entered.
    """
    mask, codec = batch["attention_mask"], assignment.cut_codec
    lengths, shape = lengths_of(mask), (mask.shape[0], mask.shape[1])
    states = decode(came)
    boundary = padded_tokens(states, lengths, shape).requires_grad_(assignment.gradient_comes_down)
    if not assignment.frozen_bottom:  # whose rows stay for later epochs
        del states
    leaves = stack.leaves(None, observer)
    factors, head = stack.parts(leaves, None)
    anatomy = serving.backbone.anatomy
    context = anatomy.context(boundary, mask)
    course = Course(
        blocks=tuple(assignment.server_blocks(anatomy.num_blocks)),
        recompute_from=0 if serving.recompute else None,
        attention=serving.attention,
    )
    with torch.set_grad_enabled(not assignment.is_black_box):
        # Joined and parted as a sweep does it with the rows of others beside these.
        hidden = torch.cat([boundary])
        hidden = Passage(serving.backbone, course, factors, context, None, observer).through(hidden)
        (hidden,) = hidden.split([len(mask)])
        if assignment.tail:
            leaving = coded_states(hidden, lengths, codec, 0)
            # Its gradient comes back in the same form.
            root, gradient = hidden, torch.cat([rows_of_states(leaving, lengths, shape)])
        else:
            _enter(observer, "head", "logits")
            root, gradient = _loss(serving, anatomy.head(hidden, context), head, batch), None
            _enter(observer, "loss", "activations")
    del hidden
    wanted = [*([boundary] if assignment.gradient_comes_down else []), *leaves.values()]
    if assignment.is_black_box or not wanted:
        return
    found = list(torch.autograd.grad(root, wanted, gradient))
    if assignment.gradient_comes_down:
        coded_states(found.pop(0), lengths, codec, 0)
    if leaves:
        _enter(observer, "optimizer", "optimizer")
        stack.update(leaves, found, None)


def _loss(serving: Serving, answer: Tensor, head: Mapping[str, Tensor], batch: Batch) -> Tensor:
    read = serving.backbone.anatomy.read_by_classifier(batch["attention_mask"])
    logits = head_logits(answer, read, head)
    return client_means(serving.task.loss(Answered(logits), batch), batch["weight"].view(1, -1)).sum()


def _enter(observer: Observer | None, phase: str, term: Term) -> None:
    if observer is not None:
        observer.enter((phase, 0), term)
