"""Rows without their padding: what works token by token skips it, and attention gets its rows back.

The real tokens of each client stand end to end, so rows of unlike length cost what their tokens cost.
Clients are filled up to the longest one, so that a stacked product over clients still has one shape.

Letters of shapes: C clients, N rows (client by client), T tokens of a padded row, X tokens of a client end to
end, D any width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

# With less padding than this share to skip, moving tokens about costs more than it saves.
WORTHWHILE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each token stands, in padded rows [N, T] and end to end [C, X].

    Attributes:
        padded: N and T.
        tight: C and X.
        take: by place end to end, the place in the rows, [C * X].
        place: by place in the rows, the place end to end, [N * T].
        fillers: places end to end that hold no token of a row.
        paddings: places in the rows that hold no token.
    """

    padded: tuple[int, int]
    tight: tuple[int, int]
    take: Tensor
    place: Tensor
    fillers: Tensor
    paddings: Tensor

    @staticmethod
    def of(mask: Tensor, clients: int) -> "Layout | None":
        """The layout of rows with this mask, [N, T], 1 at real tokens; None where it saves too little."""
        rows, tokens = mask.shape
        real = mask.bool().view(clients, -1)  # [C, N / C * T]
        counts = real.sum(1)
        longest = int(counts.max())
        if longest * clients > (1 - WORTHWHILE) * mask.numel():
            return None
        first = torch.arange(clients, device=mask.device)[:, None]
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        take = order + first * real.shape[1]  # [C, X]: the real tokens in order, then padding
        held = torch.arange(longest, device=mask.device) < counts[:, None]
        # Padding stands in for a token of its own client: another's might be no number.
        place = (first * longest).expand(real.shape).flatten().clone()
        place[take[held]] = held.flatten().nonzero().squeeze(1)
        return Layout(
            padded=(rows, tokens),
            tight=(clients, longest),
            take=take.flatten(),
            place=place,
            fillers=(~held).flatten().nonzero().squeeze(1),
            paddings=(~real).flatten().nonzero().squeeze(1),
        )

    def tighten(self, padded: Tensor) -> Tensor:
        """Rows [N, T, ...] to tokens end to end [C, X, ...]; a filler is a copy and gives no gradient."""
        flat = padded.reshape(-1, *padded.shape[2:])
        return _moved(flat, self.take, self.place, self.paddings).view(*self.tight, *padded.shape[2:])

    def spread(self, tight: Tensor) -> Tensor:
        """Tokens end to end [C, X, ...] to rows [N, T, ...]; padding is a copy and gives no gradient."""
        flat = tight.reshape(-1, *tight.shape[2:])
        return _moved(flat, self.place, self.take, self.fillers).view(*self.padded, *tight.shape[2:])

    def at_positions(self, by_position: Tensor) -> Tensor:
        """What depends on the position in a row alone, [1, T, D], for tokens end to end, [C, X, D]."""
        return by_position[0].index_select(0, self.take % self.padded[1]).view(*self.tight, -1)


class _Moved(torch.autograd.Function):
    """A gather whose gradient is the opposite gather: far cheaper than adding row by row."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, there: Tensor, back: Tensor, idle: Tensor) -> Tensor:
        ctx.save_for_backward(back, idle)
        return flat.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back, idle = ctx.saved_tensors
        return grads[0].index_select(0, back).index_fill_(0, idle, 0), None, None, None


def _moved(flat: Tensor, there: Tensor, back: Tensor, idle: Tensor) -> Tensor:
    return cast(Tensor, _Moved.apply(flat, there, back, idle))  # type: ignore[no-untyped-call]


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
