"""The server's sweep: one pass through its blocks for everybody at once, each joining at its own cut.

The sweep walks the blocks upwards from the lowest cut. A pack's hidden states join the batch when the sweep
reaches their cut; under a tail they leave before the last blocks. Each client brings its own adapter as
tensors, so one frozen backbone serves all of them.

Sharded blocks are gathered by collectives that every shard must enter in the same order, forward and
backward. So all shards walk from the same lowest block to the head, and a shard with nobody aboard carries a
*ghost row* there, whose gradient is zero times itself.

Letters of shapes: C clients, N rows of all of them, T tokens, D hidden width.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedray.assignment import Attention
from fedray.model.families import Context
from fedray.model.layout import Layout
from fedray.model.sites import StackedFactors
from fedray.training.packed import Backbone, Course, Passage, client_means, head_logits
from fedray.training.task import Answered, Batch, Task

GHOST_TOKENS = 2


@dataclass(slots=True, kw_only=True, eq=False)
class Ride:
    """The clients of a pack aboard one sweep.

    Attributes:
        first: the block at which they join; ``end`` is one past the last that runs for them.
        hidden: what they sent, [N, T, D], a leaf; ``mask`` of it, [N, T].
        clients: C; rows stand client by client.
        factors: of each client's own server-side adapter, by site.
        head: their heads where the loss lies here, with ``batch``, what the loss reads; who has neither
            leaves above its last block.
        losses: of each client, [C], once the sweep is over; ``exit`` the hidden states that leave, [N, T, D].
    """

    first: int
    end: int
    hidden: Tensor
    mask: Tensor
    clients: int
    factors: Mapping[str, StackedFactors]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    batch: Batch | None = None
    losses: Tensor | None = None
    exit: Tensor | None = None


class Walk(Protocol):
    """How a sweep is run: in this process, or through an engine that gathers sharded blocks."""

    def __call__(self, rides: Sequence[Ride], lowest: int) -> Tensor:
        """See `Sweep.__call__`."""


class Sweep:
    """Walks the blocks of one backbone."""

    def __init__(
        self, backbone: Backbone, task: Task, attention: Attention, *, recompute: bool, ghost: bool
    ) -> None:
        """How to walk.

        Args:
            backbone: the server's blocks and head.
            task: whose loss ends a ride without a tail.
            attention: the server's kernel.
            recompute: activation checkpointing, block by block.
            ghost: carry a ghost row where nobody is aboard, for a backbone in shards.
        """
        self._backbone, self._task, self._attention = backbone, task, attention
        self._recompute, self._ghost = recompute, ghost

    def __call__(self, rides: Sequence[Ride], lowest: int) -> Tensor:
        """One pass; fills in every ride's losses or exit.

        Args:
            rides: of this shard.
            lowest: the block all shards start at: the lowest cut aboard any of them.

        Returns:
            The sum of all losses: what a backward pass starts from, together with the exits.
        """
        anatomy = self._backbone.anatomy
        ordered = sorted(rides, key=lambda ride: ride.first)
        _level(ordered)
        ghost = self._ghost_row()
        hidden: Tensor | None = None  # rows of those aboard, [N, T, D]
        aboard: list[Ride] = []
        for start, end in _stretches(ordered, lowest, anatomy.num_blocks):
            staying = [ride for ride in aboard if ride.end > start]
            joining = [ride for ride in ordered if ride.first == start]
            hidden = self._reseated(aboard, staying, joining, hidden)
            aboard = [*staying, *joining]
            if aboard:
                assert hidden is not None
                hidden = self._through(range(start, end), aboard, hidden)
            elif self._ghost:
                ghost = self._through_alone(range(start, end), ghost)
        finals = [ride for ride in aboard if ride.batch is not None]
        return self._losses(finals, self._reseated(aboard, finals, [], hidden), ghost)

    def _ghost_row(self) -> Tensor:
        anatomy = self._backbone.anatomy
        parameter = next(anatomy.model.parameters())
        shape = 1, GHOST_TOKENS, anatomy.model.config.hidden_size
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device, requires_grad=True)

    def _reseated(
        self, aboard: Sequence[Ride], staying: Sequence[Ride], joining: Sequence[Ride], hidden: Tensor | None
    ) -> Tensor | None:
        """Rows of those who stay, then of those who join; who leaves takes its rows along."""
        parts = []
        if hidden is not None:
            sizes = [len(ride.hidden) for ride in aboard]
            for ride, rows in zip(aboard, hidden.split(sizes), strict=True):
                if ride in staying:
                    parts.append(rows)
                else:
                    ride.exit = rows
        if len(parts) == len(aboard) and not joining:
            return hidden
        parts += [ride.hidden for ride in joining]
        return torch.cat(parts) if parts else None

    def _through(self, blocks: range, aboard: Sequence[Ride], hidden: Tensor) -> Tensor:
        anatomy = self._backbone.anatomy
        mask = torch.cat([ride.mask for ride in aboard])
        course = self._course(blocks)
        tight = self._attention == "memory_efficient"
        layout = Layout.of(mask, sum(ride.clients for ride in aboard)) if tight else None
        factors = _beside_each_other(aboard)
        passage = Passage(self._backbone, course, factors, anatomy.context(hidden, mask), layout)
        if layout is None:
            return passage.through(hidden)
        return layout.spread(passage.through(layout.tighten(hidden)))

    def _through_alone(self, blocks: range, ghost: Tensor) -> Tensor:
        mask = torch.ones(ghost.shape[:2], dtype=torch.int64, device=ghost.device)
        context = self._backbone.anatomy.context(ghost, mask)
        return Passage(self._backbone, self._course(blocks), {}, context, None).through(ghost)

    def _course(self, blocks: range) -> Course:
        return Course(
            blocks=tuple(blocks), recompute_from=0 if self._recompute else None, attention=self._attention
        )

    def _losses(self, finals: Sequence[Ride], hidden: Tensor | None, ghost: Tensor) -> Tensor:
        anatomy = self._backbone.anatomy
        total = ghost.float().sum() * 0
        if finals:
            assert hidden is not None
            mask = torch.cat([ride.mask for ride in finals])
            # A head reads no scores: no second mask of tokens by tokens beside the blocks' own.
            answers = anatomy.head(hidden, Context(mask=None, attention_mask=mask))
            for ride, answer in zip(finals, answers.split([len(r.hidden) for r in finals]), strict=True):
                assert ride.batch is not None
                logits = head_logits(answer, anatomy.read_by_classifier(ride.mask), ride.head)
                rows = self._task.loss(Answered(logits), ride.batch)
                ride.losses = client_means(rows, ride.batch["weight"].view(ride.clients, -1))
                total = total + ride.losses.sum()
        elif self._ghost:
            mask = torch.ones(ghost.shape[:2], dtype=torch.int64, device=ghost.device)
            head = anatomy.head(ghost, Context(mask=None, attention_mask=mask))
            total = total + head.float().sum() * 0
        return total


def _stretches(rides: Sequence[Ride], lowest: int, num_blocks: int) -> list[tuple[int, int]]:
    """The runs of blocks between which nobody joins or leaves, from the lowest block to the top."""
    ends = {lowest, num_blocks, *(ride.first for ride in rides), *(ride.end for ride in rides)}
    return list(itertools.pairwise(sorted(ends)))


def _level(rides: Sequence[Ride]) -> None:
    """Give all rides as many rows a client and tokens a row as the largest has; padding is zero."""
    if not rides:
        return
    rows = max(len(ride.hidden) // ride.clients for ride in rides)
    tokens = max(ride.hidden.shape[1] for ride in rides)
    for ride in rides:
        own_rows, own_tokens = len(ride.hidden) // ride.clients, ride.hidden.shape[1]
        if (own_rows, own_tokens) == (rows, tokens):
            continue
        more = 0, tokens - own_tokens, 0, rows - own_rows
        by_client = ride.hidden.view(ride.clients, own_rows, own_tokens, -1)
        ride.hidden = pad(by_client, (0, 0, *more)).flatten(0, 1)
        mask = pad(ride.mask.view(ride.clients, own_rows, own_tokens), more)
        mask[:, own_rows:, 0] = 1  # a row of no token at all has nothing to look at
        ride.mask = mask.flatten(0, 1)
        if ride.batch is not None:
            ride.batch = {n: _levelled(t, ride.clients, own_rows, more) for n, t in ride.batch.items()}


def _levelled(target: Tensor, clients: int, rows: int, more: tuple[int, int, int, int]) -> Tensor:
    by_client = target.view(clients, rows, *target.shape[1:])
    widths = more if target.dim() > 1 else more[2:]
    return pad(by_client, widths).flatten(0, 1)


def _beside_each_other(aboard: Sequence[Ride]) -> dict[str, StackedFactors]:
    """Factors of all clients aboard, lower ranks padded with zeros; a ride without a site adds zero there."""
    sites = dict.fromkeys(site for ride in aboard for site in ride.factors)
    return {site: _stacked(site, aboard) for site in sites}


def _stacked(site: str, aboard: Sequence[Ride]) -> StackedFactors:
    own = [ride.factors.get(site) for ride in aboard]
    example = next(factors for factors in own if factors is not None)
    if len(aboard) == 1:
        return example
    rank = max(factors.a.shape[1] for factors in own if factors is not None)
    a, b, scale = [], [], []
    for ride, factors in zip(aboard, own, strict=True):
        if factors is None:
            a.append(example.a.new_zeros(ride.clients, rank, example.a.shape[2]))
            b.append(example.b.new_zeros(ride.clients, example.b.shape[1], rank))
            scale.append(example.scale.new_ones(ride.clients, 1, 1))
        else:
            a.append(pad(factors.a, (0, 0, 0, rank - factors.a.shape[1])))
            b.append(pad(factors.b, (0, rank - factors.b.shape[2])))
            scale.append(factors.scale)
    return StackedFactors(a=torch.cat(a), b=torch.cat(b), scale=torch.cat(scale))
