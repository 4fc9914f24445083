"""The server's side of a round under a cut: messages up to a sweep, gradients down, adapters stepped.

`replica` (SplitFed v1, 2004.12088) keeps an adapter per client; with it a round equals one in which
every client trains the whole model alone. `shared` (v2) has one, stepped once a sweep by the mean over
those aboard. To black boxes losses go down, and what the server runs for them stays as it was sent.

Letters of shapes: C clients of a pack, B rows of a batch, N = C * B rows, T tokens, D hidden width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import Adapter, difference, is_finite
from fedray.model.codecs import decode
from fedray.model.sites import StackedFactors, changed
from fedray.server.aboard import Aboard, Lowest, Row, ServedPack, mask_of
from fedray.server.lockstep import SplitRound
from fedray.server.sweep import Ride, Walk
from fedray.training.base_delta import deltas_of
from fedray.training.boundary import (
    Message,
    Messages,
    PackMessages,
    padded_row_target,
    padded_target,
    padded_tokens,
)
from fedray.training.optimizer import STILL, LocalOptimizer, squares_per_client
from fedray.training.packed import Backbone
from fedray.training.shares import server_share
from fedray.training.stack import Stack
from fedray.training.train import stack_of, unstack


class ServerHalf:
    """One shard's riders through a round; in one process, the only shard's."""

    def __init__(
        self, backbone: Backbone, walk: Walk, optimizer: LocalOptimizer, device: str, *, all_backward: bool
    ) -> None:
        """How to serve.

        Args:
            backbone: for names and widths.
            walk: a `Sweep`, or an engine that runs one.
            optimizer: of the clients; it steps the server's side of their adapters.
            device: of the backbone.
            all_backward: every ride that something comes down for has a backward pass through all its blocks,
                for a backbone in shards.
        """
        self._backbone, self._walk = backbone, walk
        self._optimizer, self._device, self._all_backward = optimizer, device, all_backward
        self._squares: dict[int, float] = {}
        self._clips_as_one = False
        self._riders: dict[int, ServedPack] = {}
        self._aboard: dict[int, Aboard] = {}
        self._total: Tensor | None = None
        self._shared: Stack | None = None
        self._shared_sent: Adapter | None = None
        self._shared_leaves: dict[str, Tensor] = {}
        self._deltas: dict[str, tuple[Tensor, Tensor]] = {}

    def open(self, split: SplitRound, learning_rate_scale: float) -> None:
        """A new round.

        Args:
            split: with the packs of this shard alone.
            learning_rate_scale: of the shared adapter; each pack has its own.
        """
        shared, self._deltas = split.shared, deltas_of(split.base_delta, self._device)
        anatomy, optimizer = self._backbone.anatomy, self._optimizer
        self._riders, self._aboard, self._total, self._squares = {}, {}, None, {}
        self._clips_as_one = optimizer.max_grad_norm is not None and shared is None
        self._shared_sent = shared
        together = optimizer.scaled(learning_rate_scale)
        self._shared = None if shared is None else stack_of([shared], together, self._device)
        for place, jobs in split.packs.items():
            sent = [
                server_share(anatomy, job.assignment, job.sent) if shared is None else Adapter()
                for job in jobs
            ]
            own = optimizer.scaled(jobs[0].learning_rate_scale)
            stepped = STILL if jobs[0].assignment.is_black_box else own
            self._riders[place] = ServedPack(
                jobs=jobs,
                sent=sent,
                stack=stack_of(sent, stepped, self._device),
                losses=[0.0] * len(jobs),
                kept={},
            )

    def forward(self, messages: PackMessages, lowest: Lowest) -> dict[int, Messages]:
        """A sweep up; what leaves from the top, by pack and client: for tails, and losses to black boxes.

        Those go up first, by themselves, so that nothing is kept of them for a way down.

        Args:
            messages: that came up, by pack and client; nobody of this shard is fine.
            lowest: the lowest cuts aboard any shard.
        """
        blind = {place for place in messages if self._riders[place].is_blind}
        leaving: dict[int, Messages] = {}
        with changed(self._backbone.sites, self._deltas):
            if lowest.blind is not None:
                leaving |= self._looked({place: messages[place] for place in sorted(blind)}, lowest.blind)
            self._total, self._aboard = None, {}
            if lowest.others is None:
                return leaving
            self._shared_leaves = {} if self._shared is None else self._shared.leaves(None)
            others = {place: sent for place, sent in messages.items() if sent and place not in blind}
            self._aboard = {place: self._board(place, sent) for place, sent in others.items()}
            self._total = self._walk([aboard.ride for aboard in self._aboard.values()], lowest.others)
        for place, aboard in self._aboard.items():
            aboard.riders.number += 1
            if aboard.ride.exit is None:
                self._add_losses(aboard)
            else:
                leaving[place] = aboard.messages(aboard.cropped(aboard.ride.exit), "down", None)
        return leaving

    @torch.no_grad()
    def _looked(self, messages: PackMessages, lowest: int) -> dict[int, Messages]:
        """The losses of black boxes, where each of them looks."""
        aboard = {place: self._board(place, sent) for place, sent in messages.items() if sent}
        self._walk([one.ride for one in aboard.values()], lowest)
        return {place: one.told() for place, one in aboard.items()}

    def backward(self, gradients: PackMessages) -> tuple[dict[int, Messages], list[Tensor]]:
        """Back down from the losses, and from what the tails sent.

        Returns:
            The gradient of what each client sent up, where one comes down, by pack and client; and the
            gradients of the shared adapter, summed over this shard's riders, none without a rider.
        """
        if self._total is None:  # nobody aboard whom anything comes down for
            return {}, []
        roots: list[tuple[Tensor, Tensor | None]] = [(self._total, None)]
        for place, sent in gradients.items():
            aboard = self._aboard[place]
            assert aboard.ride.exit is not None
            own = aboard.cropped(aboard.ride.exit)
            roots.append((own, aboard.arrived({c: m.states for c, m in sent.items()}).to(own.dtype)))
            self._squares |= {client: m.square for client, m in sent.items() if m.square is not None}
        live = [(root, grad) for root, grad in roots if root.requires_grad]
        if live:
            with changed(self._backbone.sites, self._deltas):  # what is recomputed runs with them again
                torch.autograd.backward([root for root, _ in live], [grad for _, grad in live])
        self._total = None
        down: dict[int, Messages] = {}
        for place, aboard in self._aboard.items():
            if answer := self._down(aboard):
                down[place] = answer
        return down, [_gradient(leaf) for leaf in self._shared_leaves.values()] if self._aboard else []

    def settle(self, squares: Mapping[int, float]) -> None:
        """Step each client's own adapter, now that its client's part of the gradient's norm is told."""
        known = {**self._squares, **squares}
        for aboard in self._aboard.values():
            if not aboard.leaves:
                continue
            told = [known[client] for client in aboard.clients if client in known]
            elsewhere = torch.tensor(told, device=self._device) if told else None
            grads = [_gradient(leaf) for leaf in aboard.leaves.values()]
            aboard.riders.stack.update(aboard.leaves, grads, aboard.index, elsewhere)
        self._aboard, self._squares = {}, {}

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """Step the shared adapter by these gradients, the mean over everybody aboard any shard."""
        assert self._shared is not None
        self._shared.update(self._shared.leaves(None), [gradient.clone() for gradient in gradients], None)

    def finish(self) -> dict[int, tuple[list[Adapter | None], list[float]]]:
        """By pack: the server's share of each update, None where it is no number, and sums of losses."""
        out = {}
        for place, riders in self._riders.items():
            out[place] = (self._own_deltas(riders), riders.losses)
        self._riders = {}
        return out

    def _own_deltas(self, riders: ServedPack) -> list[Adapter | None]:
        if riders.is_blind:
            return [Adapter() for _ in riders.jobs]
        if self._shared is not None and self._shared_sent is not None:
            (moved,) = _deltas(self._shared, [self._shared_sent])
            anatomy = self._backbone.anatomy
            return [moved and server_share(anatomy, job.assignment, moved) for job in riders.jobs]
        return _deltas(riders.stack, riders.sent)

    def _board(self, place: int, sent: Messages) -> Aboard:
        """The pack's clients that sent something, as a ride."""
        riders = self._riders[place]
        places = [at for at, job in enumerate(riders.jobs) if job.client_id in sent]
        a, anatomy = riders.jobs[0].assignment, self._backbone.anatomy
        rows = [self._rows_of(riders, at, sent[riders.jobs[at].client_id]) for at in places]
        lengths = [torch.tensor([len(row.states) for row in own], device=self._device) for own in rows]
        shape = a.batch_size, max(int(own.max()) for own in lengths)
        hidden = torch.cat([
            padded_tokens(torch.cat([row.states for row in own]), length, shape)
            for own, length in zip(rows, lengths, strict=True)
        ])  # fmt: skip
        comes_down = a.gradient_comes_down or (self._all_backward and not a.is_black_box)
        boundary = hidden.requires_grad_(comes_down)
        index = None if len(places) == len(riders.jobs) else torch.tensor(places, device=self._device)
        leaves = riders.stack.leaves(index)
        own_factors, head = riders.stack.parts(leaves, index)
        shared_factors, shared_head = self._shared_parts(a.server_blocks(anatomy.num_blocks), len(places))
        mask = torch.cat([mask_of(length, shape) for length in lengths])
        ride = Ride(
            first=a.cut,
            end=anatomy.num_blocks - a.tail,
            hidden=boundary,
            mask=mask,
            clients=len(places),
            factors={**own_factors, **shared_factors},
            head={} if a.tail else {**head, **shared_head},
            batch=None if a.tail else self._loss_batch(rows, lengths, mask, shape),
        )
        return Aboard(
            riders=riders,
            places=places,
            lengths=lengths,
            index=index,
            leaves=leaves,
            ride=ride,
            boundary=boundary,
            shape=shape,
        )

    def _rows_of(self, riders: ServedPack, at: int, message: Message) -> list[Row]:
        """A client's rows, from its message or from an epoch before."""
        client = riders.jobs[at].client_id
        if message.states is None:
            return [riders.kept[client, row] for row in message.rows]
        assert message.lengths is not None
        sizes = message.lengths.tolist()
        states = decode(message.states).to(self._device).split(sizes)
        tokens = {n: t.to(self._device).split(sizes) for n, t in message.token_targets.items()}
        rows = [
            Row(
                states=own,
                token_targets={n: t[place] for n, t in tokens.items()},
                row_targets={n: t[place].to(self._device) for n, t in message.row_targets.items()},
            )
            for place, own in enumerate(states)
        ]
        if riders.jobs[at].assignment.frozen_bottom:
            riders.kept |= {(client, row): own for row, own in zip(message.rows, rows, strict=True)}
        return rows

    def _loss_batch(
        self,
        rows: Sequence[Sequence[Row]],
        lengths: Sequence[Tensor],
        mask: Tensor,
        shape: tuple[int, int],
    ) -> dict[str, Tensor]:
        """What the loss reads, [N, T] or [N], of every client's rows and of the fillers below them."""
        example = rows[0][0]
        weight = [(torch.arange(shape[0]) < len(own)).float() for own in lengths]
        batch = {"attention_mask": mask, "weight": torch.cat(weight).to(self._device)}
        for name in example.token_targets:
            parts = [
                padded_target(name, torch.cat([row.token_targets[name] for row in own]), length, shape)
                for own, length in zip(rows, lengths, strict=True)
            ]
            batch[name] = torch.cat(parts)
        for name in example.row_targets:
            columns = [torch.stack([row.row_targets[name] for row in own]) for own in rows]
            batch[name] = torch.cat([padded_row_target(column, shape[0]) for column in columns])
        return batch

    def _shared_parts(
        self, blocks: range, clients: int
    ) -> tuple[dict[str, StackedFactors], dict[str, Tensor]]:
        """The shared adapter as each of these clients sees it on these blocks."""
        if self._shared is None:
            return {}, {}
        factors, head = self._shared.parts(self._shared_leaves, None)
        paths = tuple(self._backbone.anatomy.block_path(block) for block in blocks)
        ridden = {
            site: StackedFactors(
                a=f.a.expand(clients, -1, -1),
                b=f.b.expand(clients, -1, -1),
                scale=f.scale.expand(clients, 1, 1),
            )
            for site, f in factors.items()
            if site.startswith(paths)
        }
        return ridden, {n: t.expand(clients, *t.shape[1:]) for n, t in head.items()}

    def _down(self, aboard: Aboard) -> Messages:
        """What goes back to each client of a pack: the gradient of what it sent, and the norm of our part."""
        a = aboard.riders.jobs[0].assignment
        squares = None
        if self._clips_as_one and aboard.leaves and (a.gradient_comes_down or a.tail):
            squares = squares_per_client([_gradient(leaf) for leaf in aboard.leaves.values()]).tolist()
        if a.gradient_comes_down:
            return aboard.messages(_gradient(aboard.boundary), "gradient down", squares)
        if squares is None:
            return {}
        return {
            client: Message(square=square) for client, square in zip(aboard.clients, squares, strict=True)
        }

    def _add_losses(self, aboard: Aboard) -> None:
        assert aboard.ride.losses is not None
        for at, lengths, loss in zip(aboard.places, aboard.lengths, aboard.ride.losses.tolist(), strict=True):
            aboard.riders.losses[at] += loss * len(lengths)


def _deltas(stack: Stack, sent: Sequence[Adapter]) -> list[Adapter | None]:
    """What became of each adapter, less what it was; None where it is no number."""
    ended = zip(unstack(stack, sent), sent, strict=True)
    return [difference(end, start) if is_finite(end) else None for end, start in ended]


def _gradient(leaf: Tensor) -> Tensor:
    # Whoever rode past a site without an adapter there gives it none.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
