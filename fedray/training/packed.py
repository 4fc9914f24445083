"""Packed training: many clients in one forward pass through one frozen backbone.

The backbone sees all clients' rows as one batch; each adapter and each head is stacked client by client,
loss, gradient clipping and optimizer are per client. One client is the pack of one: this is the only
training path. Mixed ranks and depths pack too, padded with zeros that stay exactly zero. Activation
checkpointing changes no number, so a pack trains without it; an audit, which asks what a client
needs, trains its one client with it.

Letters of shapes: C clients, B rows of a client's batch, N = C * B rows, T tokens, D hidden width,
K labels, V vocabulary, R largest rank, I and O a linear's widths.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils.checkpoint import checkpoint

from fedray.activations import blocks_in_8_bits
from fedray.adapter import exit_head
from fedray.assignment import Assignment, Attention
from fedray.exits import has_last_head
from fedray.model.anatomy import Anatomy
from fedray.model.attention import use_attention
from fedray.model.counter import Phase, Term
from fedray.model.families import Context
from fedray.model.layout import Layout, laid_out
from fedray.model.rounded import kept_in_8_bits
from fedray.model.sites import (
    Installed,
    LoraSite,
    StackedFactors,
    attach_sites,
    installed,
    own_weights_installed,
    prefix_of,
    prompt_rows,
)
from fedray.training.task import Answered, Batch, Task


class Observer(Protocol):
    """Who wants to know what is allocated when; the byte counter, in a trace or an audit."""

    def enter(self, phase: Phase, term: Term) -> None:
        """From now on allocations are ``term`` and belong to ``phase``."""

    def hold(self, tensors: Sequence[Tensor], term: Term) -> None:
        """These tensors are ``term``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen model with a LoRA site on every linear that any assignment adapts."""

    anatomy: Anatomy
    sites: Mapping[str, LoraSite]

    @staticmethod
    def of(anatomy: Anatomy, targets: Sequence[tuple[str, ...]]) -> "Backbone":
        """Sites on the linears that these assignments name. Raises ModelError for a name not found."""
        names = tuple(sorted({name for target in targets for name in target}))
        return Backbone(anatomy=anatomy, sites=attach_sites(anatomy, names) if names else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a batch goes through the backbone: which blocks in what order, and which recompute."""

    blocks: tuple[int, ...]
    recompute_from: int | None = None  # position of the first recomputed block
    attention: Attention = "memory_efficient"
    tight: bool = False  # skip padding where attention is memory-efficient; a device does not
    first_position: int = 0  # of ``blocks`` among all that the client runs: not 0 in a tail
    exits: tuple[int, ...] = ()  # depths behind which a head of their own stands
    distillation: float = 0.0  # weight of what exits learn from each other
    in_8_bits: range = range(0)  # positions of blocks that keep their activations so


def course_of(assignment: Assignment, attention: Attention, *, recompute: bool) -> Course:
    """The assignment's course; ``recompute`` false ignores its checkpointing."""
    first = assignment.first_trained_block
    # Under a cut the first trained block may be another side's.
    recomputes = recompute and assignment.recompute and first is not None and first < assignment.cut
    return Course(
        blocks=assignment.blocks,
        recompute_from=first if recomputes else None,
        attention=attention,
        exits=assignment.exits,
        in_8_bits=blocks_in_8_bits(first, assignment.int8_activations),
    )


class PackedForward:
    """`fedray.training.task.Forward` for the clients of a pack, client by client in the batch."""

    def __init__(
        self,
        backbone: Backbone,
        course: Course,
        factors: Installed,
        head: Mapping[str, Tensor],
        observer: Observer | None = None,
    ) -> None:
        """Args: head: ``weight`` [C, K, D] and ``bias`` [C, K], or empty for the model's own head."""
        self._backbone, self._course = backbone, course
        self._factors, self._head = factors, head
        self._observer = observer

    def __call__(self, batch: Batch) -> Tensor:
        """Logits of the last head, [N, K] or [N, T, V]."""
        return self.answers(batch)[-1]

    def answers(self, batch: Batch) -> list[Tensor]:
        """Logits of every head that the course comes by, the lowest first."""
        rows_each = len(batch["attention_mask"]) // num_clients(self._factors, self._head)
        with own_weights_installed(self._backbone.anatomy, self._factors, rows_each):
            layout = self._layout(batch)
            depths, context = self._through_blocks(batch, layout)
            self._enter(("head", 0), "logits")
            prefixes = [exit_head(depth) for depth in self._course.exits]
            if has_last_head(self._course.exits, len(self._course.blocks)):
                prefixes.append("")
            return [
                self._logits(batch, hidden, context, layout, prefix)
                for hidden, prefix in zip(depths, prefixes, strict=True)
            ]

    def _logits(
        self, batch: Batch, hidden: Tensor, context: Context, layout: Layout | None, prefix: str
    ) -> Tensor:
        anatomy = self._backbone.anatomy
        read = anatomy.read_by_classifier(batch["attention_mask"])
        head = head_at(self._head, prefix)
        if layout is None:
            return head_logits(anatomy.head(hidden, context), read, head)
        if anatomy.head_kind == "classification":  # it picks a token of each row
            return head_logits(anatomy.head(layout.spread(hidden), context), read, head)
        return head_logits(layout.spread(anatomy.head(hidden, context)), read, head)

    def without_adapter(self, batch: Batch) -> Tensor:
        """The same rows through the frozen model; a classifier's head stays the clients' own."""
        with torch.no_grad():
            return PackedForward(self._backbone, self._course, {}, self._head)(batch)

    def _through_blocks(self, batch: Batch, layout: Layout | None) -> tuple[list[Tensor], Context]:
        """Hidden states behind each exit and, where a head stands there, behind the last block."""
        anatomy = self._backbone.anatomy
        self._enter(("stem", 0), "activations")
        inputs, mask = batch[anatomy.family.inputs], batch["attention_mask"]
        prompt = prompt_rows(self._factors, len(mask))
        flow = anatomy.stem(inputs, mask, prompt, prefix_of(self._factors, len(mask)))
        passage = Passage(self._backbone, self._course, self._factors, flow.context, layout, self._observer)
        depths = passage.depths(flow.hidden if layout is None else layout.tighten(flow.hidden))
        if prompt is not None:
            words = [hidden[:, prompt.shape[1] :] for hidden in depths]
            return words, replace(flow.context, attention_mask=mask, input_ids=inputs)
        return depths, flow.context

    def _layout(self, batch: Batch) -> Layout | None:
        if not self._course.tight or self._course.attention != "memory_efficient":
            return None
        return Layout.of(batch["attention_mask"], num_clients(self._factors, self._head))

    def _enter(self, phase: Phase, term: Term) -> None:
        if self._observer is not None:
            self._observer.enter(phase, term)


def num_clients(factors: Installed, head: Mapping[str, Tensor]) -> int:
    """How many clients these are stacked for; 1 where nothing is."""
    every = [f.a if isinstance(f, StackedFactors) else f for f in factors.values()] or list(head.values())
    return len(every[0]) if every else 1


def head_at(head: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one of the clients' heads, by their own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in head.items() if name.startswith(prefix)}


def head_logits(answer: Tensor, read: Tensor | None, head: Mapping[str, Tensor]) -> Tensor:
    """What the model's own head answers, [N, T, V], or hidden states [N, T, D] under the clients' heads.

    A client's head is a linear layer on the mean over the tokens it reads: ``weight`` [C, K, D] and
    ``bias`` [C, K] give [N, K]; without heads the answer is as it is.

    Args:
        answer: the model's.
        read: 1 at those tokens, [N, T]; None for the first of each row alone.
        head: of the clients, or empty.
    """
    if not head:
        return answer
    if read is None:
        pooled = answer[:, 0].float()  # [N, D]
    else:
        real = read.unsqueeze(-1).to(answer.dtype)  # [N, T, 1]
        pooled = ((answer * real).sum(1) / real.sum(1).clamp(min=1)).float()
    weight, bias = head["weight"], head["bias"]
    clients = weight.shape[0]
    logits = torch.baddbmm(
        bias.unsqueeze(1), pooled.view(clients, -1, pooled.shape[-1]), weight.transpose(1, 2)
    )
    return logits.flatten(0, 1)


class Passage:
    """Hidden states through some blocks of the backbone, in the layout they come in."""

    def __init__(
        self,
        backbone: Backbone,
        course: Course,
        factors: Installed,
        context: Context,
        layout: Layout | None,
        observer: Observer | None = None,
    ) -> None:
        """Args: context: of the rows; ``layout``: None for plain rows."""
        self._backbone, self._course, self._factors = backbone, course, factors
        self._layout, self._observer = layout, observer
        if layout is not None and context.rotary is not None:
            cosine, sine = context.rotary
            context = replace(context, rotary=(layout.at_positions(cosine), layout.at_positions(sine)))
        self._context = context

    def through(self, hidden: Tensor) -> Tensor:
        """[N, T, D], or [1, X, D] under a layout, to the same behind the last block of the course."""
        return self.depths(hidden)[-1]

    def depths(self, hidden: Tensor) -> list[Tensor]:
        """The same behind each exit of the course, and behind its last block."""
        behind: list[Tensor] = []
        use_attention(self._backbone.anatomy.model, self._course.attention)
        with laid_out(self._layout), installed(self._backbone.sites, self._factors):
            for position, block in enumerate(self._course.blocks, start=self._course.first_position):
                if self._observer is not None:
                    self._observer.enter(("forward", position), "activations")
                hidden = self._block(position, block, hidden)
                self._announce_backward(hidden, position)
                if position + 1 in self._course.exits:
                    behind.append(hidden)
        return behind if len(self._course.blocks) in self._course.exits else [*behind, hidden]

    def _block(self, position: int, block: int, hidden: Tensor) -> Tensor:
        first = self._course.recompute_from
        if position in self._course.in_8_bits:
            with kept_in_8_bits(self._there_anyway(block), hidden.numel() // 2):
                return self._backbone.anatomy.block(block, hidden, self._context)
        if first is None or position < first:
            return self._backbone.anatomy.block(block, hidden, self._context)
        recomputed: Tensor = checkpoint(
            _installed_block(self._backbone, self._factors, block, self._layout),
            hidden,
            self._context,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return recomputed

    def _there_anyway(self, block: int) -> Iterator[Tensor]:
        """What a block's graph saves beside its activations: frozen weights, what is trained, masks."""
        module, context = self._backbone.anatomy.blocks[block], self._context
        yield from itertools.chain(module.parameters(), module.buffers())
        for own in self._factors.values():
            yield from (own.a, own.b, own.scale) if isinstance(own, StackedFactors) else (own,)
        yield from (t for t in (context.mask, *(context.rotary or ())) if t is not None)

    def _announce_backward(self, hidden: Tensor, position: int) -> None:
        if self._observer is not None and hidden.requires_grad:
            observer = self._observer
            hidden.register_hook(lambda grad: observer.enter(("backward", position), "activations"))


def _installed_block(
    backbone: Backbone, factors: Installed, block: int, layout: Layout | None
) -> Callable[[Tensor, Any], Tensor]:
    """The block as the forward ran it: recomputation comes after others may have used the model."""
    kernel = backbone.anatomy.model.config._attn_implementation

    def run(hidden: Tensor, context: Any) -> Tensor:
        backbone.anatomy.model.config._attn_implementation = kernel
        weights = own_weights_installed(backbone.anatomy, factors, len(hidden) // num_clients(factors, {}))
        with laid_out(layout), installed(backbone.sites, factors), weights:
            return backbone.anatomy.block(block, hidden, context)

    return run


LossOfClients = Callable[[Installed, Mapping[str, Tensor]], Tensor]


def loss_of_clients(
    backbone: Backbone,
    course: Course,
    task: Task,
    batch: Batch,
    observer: Observer | None = None,
    squares: list[Tensor] | None = None,
) -> LossOfClients:
    """Each client's mean loss over its real rows: what `Stack.step` differentiates.

    ``batch`` holds ``weight`` [N], 1 for real rows and 0 for filler. ``squares`` is given each client's mean
    of its rows' squared losses, [M], whenever a loss is asked for.
    """

    def loss(factors: Installed, head: Mapping[str, Tensor]) -> Tensor:
        forward = PackedForward(backbone, course, factors, head, observer)
        weight = batch["weight"].view(num_clients(factors, head), -1)
        if course.exits:
            rows = losses_of_exits(task, forward.answers(batch), batch, course.distillation)
        else:
            rows = task.loss(forward, batch)
        if squares is not None:
            squares.append(client_means(rows.detach().square(), weight))
        return client_means(rows, weight)

    return loss


def losses_of_exits(task: Task, answers: Sequence[Tensor], batch: Batch, distillation: float) -> Tensor:
    """DepthFL's loss of each row, [N]: those of all heads, and what they learn from each other.

    ``distillation / (n - 1)`` times the sum over ordered pairs of the n heads of KL(other || own), where the
    other one's answer is given no gradient.

    Args:
        task: whose loss.
        answers: logits of the heads, [N, K] each.
        batch: the rows.
        distillation: weight of the second part.
    """
    rows = torch.stack([task.loss(Answered(logits), batch) for logits in answers]).sum(0)
    if not distillation or len(answers) < 2:
        return rows
    logs = [logits.log_softmax(-1) for logits in answers]
    for own, other in itertools.permutations(logs, 2):
        taught = kl_div(own, other.detach(), log_target=True, reduction="none").sum(-1)
        rows = rows + taught * (distillation / (len(answers) - 1))
    return rows


def client_means(rows: Tensor, weight: Tensor) -> Tensor:
    """Losses of rows [N] to one per client, [C], each the mean of its real rows; weight is [C, B]."""
    return (rows.view(weight.shape) * weight).sum(1) / weight.sum(1)
