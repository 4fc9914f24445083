"""One step below a cut and in a tail: the client's own arithmetic, without the messages in between.

Runs alike for a pack, for a client alone under the counter, and on the meta device for a footprint.

Letters of shapes: M clients, N rows of all of them, T tokens, D hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedray.assignment import Assignment, Attention
from fedray.model.counter import Term
from fedray.model.families import Context
from fedray.model.layout import Layout
from fedray.model.sites import StackedFactors
from fedray.training.optimizer import squares_per_client
from fedray.training.packed import (
    Backbone,
    Course,
    Observer,
    Passage,
    client_means,
    course_of,
    head_logits,
)
from fedray.training.stack import Stack
from fedray.training.task import Answered, Batch, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfCourse:
    """How a client's batch goes through its blocks: those below the cut, and those of its tail."""

    bottom: Course
    tail: Course
    needs_bottom_gradient: bool

    @staticmethod
    def of(
        assignment: Assignment, num_blocks: int, attention: Attention, *, recompute: bool, tight: bool
    ) -> "HalfCourse":
        """The assignment's; ``recompute`` false ignores its checkpointing."""
        course = replace(course_of(assignment, attention, recompute=recompute), tight=tight)
        blocks = tuple(range(num_blocks - assignment.tail, num_blocks))
        from_there = assignment.cut if recompute and assignment.recompute else None
        return HalfCourse(
            bottom=course,
            # The gradient goes through all of a tail, so all of it recomputes.
            tail=replace(course, blocks=blocks, first_position=assignment.cut, recompute_from=from_there),
            needs_bottom_gradient=assignment.gradient_comes_down or assignment.local_loss,
        )


class HalfStep:
    """A step under way, from the batch to the cut and back."""

    def __init__(
        self,
        backbone: Backbone,
        course: HalfCourse,
        stack: Stack,
        batch: Batch,
        index: Tensor | None,
        observer: Observer | None = None,
    ) -> None:
        """Args: index: the members' places in the stack, [M]; None for all."""
        self._backbone, self._course, self._observer = backbone, course, observer
        self._stack, self._index, self._batch = stack, index, batch
        self.leaves = stack.leaves(index, observer)  # where the members stand
        self._factors, self._head = stack.parts(self.leaves, index)
        self._grads: dict[str, Tensor] = {}
        self._hidden: Tensor | None = None
        mask, clients = batch["attention_mask"], len(stack.steps) if index is None else len(index)
        self._clients = clients
        self._layout = Layout.of(mask, clients) if course.bottom.tight else None

    def up(self, place: Mapping[str, Tensor] | None = None) -> Tensor:
        """The client's blocks below the cut: hidden states [N, T, D] without graph.

        Args:
            place: looked from in place of where the members stand, [M, ...] each.
        """
        anatomy, mask = self._backbone.anatomy, self._batch["attention_mask"]
        factors = self._factors if place is None else self._stack.parts(place, self._index)[0]
        with torch.set_grad_enabled(self._course.needs_bottom_gradient):
            self._enter("stem")
            flow = anatomy.stem(self._batch[anatomy.family.inputs], mask)
            hidden = self._through(self._course.bottom, factors, flow.hidden, flow.context)
        if self._course.needs_bottom_gradient:
            self._hidden = hidden
        return hidden.detach()

    def turn(self, arrived: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """The tail: from the server's hidden states [N, T, D] to losses [M], and their gradient [N, T, D]."""
        anatomy, mask = self._backbone.anatomy, self._batch["attention_mask"]
        arrived = arrived.detach().requires_grad_()
        context = anatomy.context(arrived, mask)
        hidden = self._through(self._course.tail, self._factors, arrived, context)
        self._enter("head", "logits")
        logits = head_logits(anatomy.head(hidden, context), anatomy.read_by_classifier(mask), self._head)
        rows = task.loss(Answered(logits), self._batch)
        losses = client_means(rows, self._batch["weight"].view(self._clients, -1))
        self._enter("loss")
        tail = self._tail_leaves()
        gradient, *found = torch.autograd.grad(losses.sum(), [arrived, *tail.values()])
        self._grads |= dict(zip(tail, found, strict=True))
        return losses.detach(), gradient

    def down(self, gradient: Tensor) -> None:
        """Back through the blocks below the cut from the hidden states' gradient, [N, T, D]."""
        assert self._hidden is not None, "up comes first"
        tail = self._tail_leaves()
        bottom = {name: leaf for name, leaf in self.leaves.items() if name not in tail}
        found = torch.autograd.grad(self._hidden, list(bottom.values()), gradient.to(self._hidden.dtype))
        self._grads |= dict(zip(bottom, found, strict=True))
        self._hidden = None

    def learn_at_cut(self, task: Task, head: str) -> None:
        """A loss at the cut, from an auxiliary head, and back: nothing comes down (DTFL, 2312.05642).

        Args:
            task: whose loss.
            head: what the head's names start with.
        """
        assert self._hidden is not None, "up comes first"
        own = {name.removeprefix(head): t for name, t in self._head.items() if name.startswith(head)}
        self._enter("head", "logits")
        logits = head_logits(self._hidden, self._batch["attention_mask"], own)
        rows = task.loss(Answered(logits), self._batch)
        losses = client_means(rows, self._batch["weight"].view(self._clients, -1))
        self._enter("loss")
        self.learn(torch.autograd.grad(losses.sum(), list(self.leaves.values())))
        self._hidden = None

    def learn(self, grads: Sequence[Tensor]) -> None:
        """Gradients of all that the members train here, in the order of ``leaves``, found elsewhere."""
        self._grads |= dict(zip(self.leaves, grads, strict=True))

    def squares(self) -> Tensor:
        """Squared norm of each member's gradients so far, [M]."""
        return squares_per_client(list(self._grads.values()))

    def update(self, squares_elsewhere: Tensor | None) -> None:
        """Clip, with what the other side's part of the norm is, [M], and step."""
        self._enter("optimizer", "optimizer")
        if self.leaves:
            grads = [self._grads[name] for name in self.leaves]
            self._stack.update(self.leaves, grads, self._index, squares_elsewhere)

    def _through(
        self, course: Course, factors: Mapping[str, StackedFactors], hidden: Tensor, context: Context
    ) -> Tensor:
        layout = self._layout
        passage = Passage(self._backbone, course, factors, context, layout, self._observer)
        if layout is None:
            return passage.through(hidden)
        return layout.spread(passage.through(layout.tighten(hidden)))

    def _tail_leaves(self) -> dict[str, Tensor]:
        if not self._course.tail.blocks:
            return {}
        anatomy = self._backbone.anatomy
        paths = ("head.", *(anatomy.block_path(block) for block in self._course.tail.blocks))
        return {name: leaf for name, leaf in self.leaves.items() if name.startswith(paths)}

    def _enter(self, phase: str, term: Term = "activations") -> None:
        if self._observer is not None:
            self._observer.enter((phase, 0), term)
