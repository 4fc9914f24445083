"""A forward pass without gradient whose middle runs elsewhere: on the server, above a cut and below a tail.

For an evaluation in which no process holds the whole backbone. The logits, and with them a task's targets,
stay where the rows are.

Letters of shapes: N rows, T tokens, D hidden width, K labels, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fedray.adapter import Factors
from fedray.model.sites import Installed
from fedray.training.packed import Backbone, Course, Passage, head_logits
from fedray.training.task import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The blocks that run elsewhere.

    Attributes:
        first: the cut.
        end: one past the last of them.
        factors: of the adapter's sites in them.
    """

    first: int
    end: int
    factors: Mapping[str, Factors]


class Middle(Protocol):
    """Whoever runs them."""

    def __call__(self, span: Span, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [N, T, D] through the span, to the same shape; ``mask`` [N, T] is 1 at tokens."""


class PartedForward:
    """`fedray.training.task.Forward` of one adapter."""

    def __init__(
        self,
        backbone: Backbone,
        span: Span,
        middle: Middle,
        factors: Installed,
        head: Mapping[str, Tensor],
    ) -> None:
        """What is run here, and by whom the rest.

        Args:
            backbone: with the stem, the head and all blocks but those of the span.
            span: the blocks in between.
            middle: runs them.
            factors: of all sites, stacked for one client.
            head: ``weight`` [1, K, D] and ``bias`` [1, K], or empty for the model's own head.
        """
        self._backbone, self._span, self._middle = backbone, span, middle
        self._factors, self._head = factors, head

    def __call__(self, batch: Batch) -> Tensor:
        """Logits, [N, K] or [N, T, V]."""
        return self._logits(batch, self._span, self._factors)

    def without_adapter(self, batch: Batch) -> Tensor:
        """The same rows through the frozen model; a classifier's head stays."""
        return self._logits(batch, replace(self._span, factors={}), {})

    @torch.no_grad()
    def _logits(self, batch: Batch, span: Span, factors: Installed) -> Tensor:
        anatomy, mask = self._backbone.anatomy, batch["attention_mask"]
        flow = anatomy.stem(batch[anatomy.family.inputs], mask)

        def through(blocks: range, hidden: Tensor) -> Tensor:
            course = Course(blocks=tuple(blocks))
            return Passage(self._backbone, course, factors, flow.context, None).through(hidden)

        hidden = self._middle(span, through(range(span.first), flow.hidden), mask)
        hidden = through(range(span.end, anatomy.num_blocks), hidden)
        return head_logits(anatomy.head(hidden, flow.context), anatomy.read_by_classifier(mask), self._head)
