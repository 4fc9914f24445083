"""Rows without their padding: what works token by token skips it, and attention gets its rows back.

The real tokens of all rows stand end to end, client by client, so rows of unlike length cost what their
tokens cost. Attention, whose cost grows with the square of the padded length, gets short rows and long ones
apart.

Letters of shapes: N rows (client by client), T tokens of a padded row, X real tokens of all rows, D any
width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# With less padding than this share to skip, moving tokens about costs more than it saves.
WORTHWHILE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Where each token stands in some padded rows.

    Attributes:
        token: by place in the rows, the token that stands there; at padding, one of the same client, as
            another's might be no number.
        place: by token, its place in the rows, [X].
        padding: places that hold no token.
    """

    token: Tensor
    place: Tensor
    padding: Tensor

    def spread(self, tokens: Tensor) -> Tensor:
        """Tokens [X, ...] to places; padding is a copy and gives no gradient."""
        return _moved(tokens, self.token, self.place, None)

    def tighten(self, places: Tensor) -> Tensor:
        """Places to tokens [X, ...]; padding gets no gradient."""
        return _moved(places, self.place, self.token, self.padding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Rows of like length: which of the N, [rows], and what they are padded to."""

    rows: Tensor
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each token stands: end to end [1, X], in padded rows [N, T], and in rows of like length.

    Attributes:
        padded: N and T.
        counts: tokens of each client, in order; they add up to X.
        rows: the padded rows.
        benches: the rows sorted by length, for attention; ``seats`` those of all benches one after the other.
    """

    padded: tuple[int, int]
    counts: tuple[int, ...]
    rows: Seats
    benches: tuple[Bench, ...]
    seats: Seats

    @staticmethod
    def of(mask: Tensor, clients: int) -> "Layout | None":
        """The layout of rows with this mask, [N, T], 1 at real tokens; None where it saves too little."""
        counts = mask.view(clients, -1).sum(1)
        if int(counts.sum()) > (1 - WORTHWHILE) * mask.numel():
            return None
        first = counts.cumsum(0) - counts  # of each client's tokens
        stand_in = first.repeat_interleave(mask.numel() // clients)
        benches = _benches(mask)
        columns = torch.arange(mask.shape[1], device=mask.device)
        of_benches = [(b.rows[:, None] * len(columns) + columns[: b.tokens]).flatten() for b in benches]
        everywhere = torch.arange(mask.numel(), device=mask.device)
        return Layout(
            padded=(mask.shape[0], mask.shape[1]),
            counts=tuple(counts.tolist()),
            rows=_seats(mask, everywhere, stand_in),
            benches=benches,
            seats=_seats(mask, torch.cat(of_benches), stand_in),
        )

    def tighten(self, padded: Tensor) -> Tensor:
        """Rows [N, T, ...] to tokens end to end [1, X, ...]."""
        return self.rows.tighten(padded.flatten(0, 1)).unsqueeze(0)

    def spread(self, tight: Tensor) -> Tensor:
        """Tokens end to end [1, X, ...] to rows [N, T, ...]; padding is a copy and gives no gradient."""
        return self.rows.spread(tight.squeeze(0)).view(*self.padded, *tight.shape[2:])

    def seat(self, tight: Tensor) -> list[Tensor]:
        """Tokens end to end [1, X, ...] to the rows of each bench, [rows, tokens, ...] each."""
        sizes = [len(bench.rows) * bench.tokens for bench in self.benches]
        parts = self.seats.spread(tight.squeeze(0)).split(sizes)
        return [part.view(-1, b.tokens, *part.shape[1:]) for part, b in zip(parts, self.benches, strict=True)]

    def unseat(self, benches: Sequence[Tensor]) -> Tensor:
        """The other way round."""
        return self.seats.tighten(torch.cat([bench.flatten(0, 1) for bench in benches])).unsqueeze(0)

    def at_positions(self, by_position: Tensor) -> Tensor:
        """What depends on the position in a row alone, [1, T, D], for tokens end to end, [1, X, D]."""
        return by_position.index_select(1, self.rows.place % self.padded[1])


def _benches(mask: Tensor) -> tuple[Bench, ...]:
    """Short rows and long ones apart, where the squares of their lengths then add up to clearly less."""
    ends = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = ends.amax(1).cpu().numpy()  # up to the last real token
    bounds = np.unique(lengths)
    short = np.searchsorted(np.sort(lengths), bounds, side="right")
    costs = short * bounds**2 + (len(lengths) - short) * bounds[-1] ** 2
    bound = bounds[costs.argmin()] if costs.min() < (1 - 2 * WORTHWHILE) * costs[-1] else bounds[-1]
    parts = [part for part in (lengths <= bound, lengths > bound) if part.any()]
    return tuple(
        Bench(rows=torch.from_numpy(part.nonzero()[0]).to(mask.device), tokens=int(lengths[part].max()))
        for part in parts
    )


def _seats(mask: Tensor, places: Tensor, stand_in: Tensor) -> Seats:
    """Seats at these places of the padded rows [N * T]; ``stand_in`` has a token for every place."""
    real = mask.flatten().bool()
    token_of = torch.where(real, real.cumsum(0) - 1, stand_in)
    taken = real[places]
    place = torch.empty(int(real.sum()), dtype=torch.long, device=mask.device)
    place[token_of[places[taken]]] = taken.nonzero().squeeze(1)
    return Seats(token=token_of[places], place=place, padding=(~taken).nonzero().squeeze(1))


class _Moved(torch.autograd.Function):
    """A gather whose gradient is the opposite gather: far cheaper than adding row by row."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, there: Tensor, back: Tensor, idle: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, idle)
        return source.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back, idle = ctx.saved_tensors
        grad = grads[0].index_select(0, back)
        return grad if idle is None else grad.index_fill_(0, idle, 0), None, None, None


def _moved(source: Tensor, there: Tensor, back: Tensor, idle: Tensor | None) -> Tensor:
    """``source[there]``, whose gradient is ``grad[back]`` with zero at the ``idle`` places of the source."""
    return cast(Tensor, _Moved.apply(source, there, back, idle))  # type: ignore[no-untyped-call]


_current: list[Layout | None] = [None]


@contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
    """For the length of a ``with``, blocks get tokens end to end and attention spreads them into rows."""
    before, _current[0] = _current[0], layout
    try:
        yield
    finally:
        _current[0] = before


def current_layout() -> Layout | None:
    """The layout of the blocks that run now, None for plain rows."""
    return _current[0]
