"""What the clients of a pack train, stacked client by client, and their steps.

Letters of shapes: C clients, M of them that take a step, R largest rank, I and O a linear's widths.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import WEIGHTS
from fedray.model.sites import StackedFactors
from fedray.training.forward_only import Directions, Looking
from fedray.training.observables import BlockStatistics
from fedray.training.optimizer import LocalOptimizer, clip_per_client
from fedray.training.ordered import OrderedSteps
from fedray.training.packed import LossOfClients, Observer
from fedray.training.tails import pull_tails


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
        self.corrections = optimizer.corrections(list(self.params.values()))
        self.steps = steps
        self.tails: Mapping[str, Tensor] = {}  # by site which ranks are a client's last, [C, R], if pulled
        self.statistics: BlockStatistics | None = None  # looks on at every step, if given
        self.directions: Directions | None = None  # stand in for a backward pass, if given
        self.ordered: OrderedSteps | None = None  # says what part of its weights a step trains, if given

    def step(
        self, loss: LossOfClients, members: Tensor | None = None, observer: Observer | None = None
    ) -> Tensor:
        """One local step of the clients at ``members`` (None: all).

        Args:
            loss: takes stacked factors and head of the members to one loss per member, [M].
            members: positions in the stack, [M], ascending.
            observer: told of gradients and of the optimizer's phase.

        Returns:
            The members' losses before the step, [M], without graph; without a backward pass the mean of those
            that were looked at around there.
        """
        if self.directions is not None:
            return self._forward_only(self.directions, loss, members, observer)
        leaves = self.leaves(members, observer)
        part = leaves
        if self.ordered is not None:
            part = self.ordered.part(leaves, self._who(members))
            self.ordered.step(self._who(members))
        losses = self._losses(loss, part, members)
        if observer is not None:
            observer.enter(("loss", 0), "activations")
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        if observer is not None:
            observer.enter(("optimizer", 0), "optimizer")
        self.update(leaves, grads, members)
        return losses.detach()

    def _who(self, members: Tensor | None) -> Sequence[int]:
        return range(len(self.steps)) if members is None else members.tolist()

    def _losses(self, loss: LossOfClients, tensors: Mapping[str, Tensor], members: Tensor | None) -> Tensor:
        factors, head = self.parts(tensors, members)
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
        return loss({**factors, **own}, head)

    @torch.no_grad()
    def _forward_only(
        self, directions: Directions, loss: LossOfClients, members: Tensor | None, observer: Observer | None
    ) -> Tensor:
        leaves = {name: self._take(param, members) for name, param in self.params.items()}
        looking = Looking(directions, leaves, self._who(members), observer)
        while not looking.done:
            looking.hear(self._losses(loss, looking.place(), members))
        if observer is not None:
            observer.enter(("optimizer", 0), "optimizer")
        self.update(leaves, looking.grads, members)
        return looking.mean

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
        optimizer.correct(grads, [self._take(correction, members) for correction in self.corrections])
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


def _holding(observer: Observer) -> Callable[[Tensor], None]:
    return lambda grad: observer.hold([grad], "gradients")
