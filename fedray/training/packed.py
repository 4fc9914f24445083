"""Packed training: many clients in one forward pass through one frozen backbone.

The backbone sees all clients' rows as one batch; each adapter and each head is stacked client by client,
loss, gradient clipping and optimizer are per client. One client is the pack of one: this is the only
training path. Mixed ranks and depths pack too, padded with zeros that stay exactly zero. Activation
checkpointing changes no number, so a pack trains without it; an audit, which asks what a client
needs, trains its one client with it.

Letters of shapes: C clients, B rows of a client's batch, N = C * B rows, T tokens, D hidden width,
K labels, V vocabulary, R largest rank, I and O a linear's widths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedray.adapter import WEIGHTS
from fedray.assignment import Assignment, Attention
from fedray.model.anatomy import Anatomy
from fedray.model.attention import use_attention
from fedray.model.counter import Phase, Term
from fedray.model.families import Context
from fedray.model.layout import Layout, laid_out
from fedray.model.sites import (
    Installed,
    LoraSite,
    StackedFactors,
    attach_sites,
    installed,
    own_weights_installed,
    prompt_rows,
)
from fedray.training.observables import BlockStatistics
from fedray.training.optimizer import LocalOptimizer, clip_per_client
from fedray.training.tails import pull_tails
from fedray.training.task import Batch, Task


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


def course_of(assignment: Assignment, attention: Attention, *, recompute: bool) -> Course:
    """The assignment's course; ``recompute`` false ignores its checkpointing."""
    first = assignment.first_trained_block
    # Under a cut the first trained block may be another side's.
    recomputes = recompute and assignment.recompute and first is not None and first < assignment.cut
    return Course(blocks=assignment.blocks, recompute_from=first if recomputes else None, attention=attention)


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
        """Logits, [N, K] or [N, T, V]."""
        rows_each = len(batch["attention_mask"]) // num_clients(self._factors, self._head)
        with own_weights_installed(self._backbone.anatomy, self._factors, rows_each):
            return self._logits(batch)

    def _logits(self, batch: Batch) -> Tensor:
        layout, anatomy = self._layout(batch), self._backbone.anatomy
        hidden, context = self._through_blocks(batch, layout)
        self._enter(("head", 0), "logits")
        read = anatomy.read_by_classifier(batch["attention_mask"])
        if layout is None:
            return head_logits(anatomy.head(hidden, context), read, self._head)
        if anatomy.head_kind == "classification":  # it picks a token of each row
            return head_logits(anatomy.head(layout.spread(hidden), context), read, self._head)
        return head_logits(layout.spread(anatomy.head(hidden, context)), read, self._head)

    def without_adapter(self, batch: Batch) -> Tensor:
        """The same rows through the frozen model; a classifier's head stays the clients' own."""
        with torch.no_grad():
            return PackedForward(self._backbone, self._course, {}, self._head)(batch)

    def _through_blocks(self, batch: Batch, layout: Layout | None) -> tuple[Tensor, Context]:
        anatomy = self._backbone.anatomy
        self._enter(("stem", 0), "activations")
        inputs, mask = batch[anatomy.family.inputs], batch["attention_mask"]
        prompt = prompt_rows(self._factors, len(mask))
        flow = anatomy.stem(inputs, mask, prompt)
        passage = Passage(self._backbone, self._course, self._factors, flow.context, layout, self._observer)
        hidden = passage.through(flow.hidden if layout is None else layout.tighten(flow.hidden))
        if prompt is not None:
            return hidden[:, prompt.shape[1] :], replace(flow.context, attention_mask=mask, input_ids=inputs)
        return hidden, flow.context

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
        use_attention(self._backbone.anatomy.model, self._course.attention)
        with laid_out(self._layout), installed(self._backbone.sites, self._factors):
            for position, block in enumerate(self._course.blocks, start=self._course.first_position):
                if self._observer is not None:
                    self._observer.enter(("forward", position), "activations")
                hidden = self._block(position, block, hidden)
                self._announce_backward(hidden, position)
        return hidden

    def _block(self, position: int, block: int, hidden: Tensor) -> Tensor:
        first = self._course.recompute_from
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


class Stack:
    """The trained tensors of C clients by flat name (``SITE.lora_A``, ``head.weight``), and their steps."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
        optimizer: LocalOptimizer,
        steps: Tensor,
    ) -> None:
        """Hold what clients were sent; all but ``frozen`` is the stack's own.

        Args:
            params: [C, ...] each.
            frozen: A of the sites that train B alone, [C, R, I] by site.
            scales: [C, 1, 1] by site.
            optimizer: of all.
            steps: zeros, [C].
        """
        self.params = dict(params)
        self.frozen = dict(frozen)
        self.scales = dict(scales)
        self.optimizer = optimizer
        self.moments = optimizer.moments(list(self.params.values()))
        self.anchors = optimizer.anchors(list(self.params.values()))
        self.steps = steps
        self.tails: Mapping[str, Tensor] = {}  # by site which ranks are a client's last, [C, R], if pulled
        self.statistics: BlockStatistics | None = None  # looks on at every step, if given

    def step(
        self, loss: "LossOfClients", members: Tensor | None = None, observer: Observer | None = None
    ) -> Tensor:
        """One local step of the clients at ``members`` (None: all).

        Args:
            loss: takes stacked factors and head of the members to one loss per member, [M].
            members: positions in the stack, [M], ascending.
            observer: told of gradients and of the optimizer's phase.

        Returns:
            The members' losses before the step, [M], without graph.
        """
        leaves = self.leaves(members, observer)
        factors, head = self.parts(leaves, members)
        own = {name: leaf for name, leaf in leaves.items() if name.startswith(WEIGHTS)}
        losses = loss({**factors, **own}, head)
        if observer is not None:
            observer.enter(("loss", 0), "activations")
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        if observer is not None:
            observer.enter(("optimizer", 0), "optimizer")
        self.update(leaves, grads, members)
        return losses.detach()

    def leaves(self, members: Tensor | None, observer: Observer | None = None) -> dict[str, Tensor]:
        """The members' tensors by flat name, [M, ...] each, that a backward pass finds gradients of."""
        leaves = {name: self._take(param, members).requires_grad_() for name, param in self.params.items()}
        if observer is not None:
            for leaf in leaves.values():
                leaf.register_hook(_holding(observer))
        return leaves

    @torch.no_grad()
    def update(
        self,
        leaves: Mapping[str, Tensor],
        grads: Sequence[Tensor],
        members: Tensor | None,
        squares_elsewhere: Tensor | None = None,
    ) -> None:
        """Clip and step the members.

        Args:
            leaves: from `Stack.leaves`.
            grads: theirs, in the same order.
            members: as `Stack.leaves` was given.
            squares_elsewhere: what else a member's norm is made of, squared, [M]: the other side of a cut.
        """
        if self.statistics is not None:
            self.statistics.see(leaves, grads, members)
        optimizer = self.optimizer
        own = [leaf.detach() for leaf in leaves.values()]
        optimizer.pull(own, grads, [self._take(anchor, members) for anchor in self.anchors])
        named = dict(zip(leaves, own, strict=True))
        if self.tails:
            pull_tails(self.tails, named, grads, self.frozen, members, optimizer.tail_penalty)
        if optimizer.max_grad_norm is not None and own:
            clip_per_client(grads, optimizer.max_grad_norm, squares_elsewhere)
        steps = self._take(self.steps, members).add_(1)
        moments = [[self._take(m, members) for m in kind] for kind in self.moments]
        optimizer.step(named, grads, moments, steps)
        if members is not None:
            self.steps.index_copy_(0, members, steps)
            for kept, moved in zip(self.params.values(), own, strict=True):
                kept.index_copy_(0, members, moved)
            for kind, taken in zip(self.moments, moments, strict=True):
                for kept, moved in zip(kind, taken, strict=True):
                    kept.index_copy_(0, members, moved)

    def _take(self, tensor: Tensor, members: Tensor | None) -> Tensor:
        # With everybody aboard the stack's own storage is stepped in place; the leaf has its own graph.
        return tensor.detach() if members is None else tensor.index_select(0, members)

    def parts(
        self, tensors: Mapping[str, Tensor], members: Tensor | None
    ) -> tuple[dict[str, StackedFactors], dict[str, Tensor]]:
        """Leaves of the members as factors by site, and as the head; the model's own weights are neither."""
        factors = {
            site: StackedFactors(
                a=self._take(self.frozen[site], members)
                if site in self.frozen
                else tensors[f"{site}.lora_A"],
                b=tensors[f"{site}.lora_B"],
                scale=self._take(scale, members),
            )
            for site, scale in self.scales.items()
        }
        head = {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}
        return factors, head


LossOfClients = Callable[[Installed, Mapping[str, Tensor]], Tensor]


def _holding(observer: Observer) -> Callable[[Tensor], None]:
    return lambda grad: observer.hold([grad], "gradients")


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
        rows = task.loss(forward, batch)
        if squares is not None:
            squares.append(client_means(rows.detach().square(), weight))
        return client_means(rows, weight)

    return loss


def client_means(rows: Tensor, weight: Tensor) -> Tensor:
    """Losses of rows [N] to one per client, [C], each the mean of its real rows; weight is [C, B]."""
    return (rows.view(weight.shape) * weight).sum(1) / weight.sum(1)
