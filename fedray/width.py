"""Which part of every block a narrower model keeps: how many units of an axis, and which of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.seeds import generator

Axis = Literal["hidden", "heads", "head_dim", "ffn"]
Window = Literal["prefix", "rolling", "random", "salient"]
AXES: tuple[Axis, ...] = get_args(Axis)
WINDOWS: tuple[Window, ...] = get_args(Window)
Indices = NDArray[np.int64]
UnitOrder = Mapping[tuple[Axis, int], Indices]
"""Of an axis in a block (-1: hidden units, which all blocks share) all its units, the most salient first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """A share of the units of some axes: ``ceil(share * n)`` of n, as HeteroFL (2010.01264) counts.

    Attributes:
        share: above 0 and below 1.
        axes: what is narrowed: ``"heads"`` whole heads (of grouped queries whole groups), ``"head_dim"``
            inside every head (of rotary heads in pairs), ``"ffn"`` inside every feed-forward part,
            ``"hidden"`` the hidden states themselves, with embeddings, norms and the head's input.
        window: ``"prefix"`` the leading units; ``"rolling"`` the prefix moved down by ``turn`` units, around
            the end (FedRolex, 2212.01548, with the round as turn); ``"random"`` drawn from ``turn`` as a
            seed, for each block and axis apart; ``"salient"`` those with the largest pretrained weights, for
            each block and axis apart (RaFFM, 2310.00247, -style).
        turn: of a window that moves.

    Raises:
        ConfigError: at construction, for a value out of range.
    """

    share: float
    axes: tuple[Axis, ...] = ("ffn",)
    window: Window = "prefix"
    turn: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"A width's share is above 0 and below 1, found {self.share}.")
        if not self.axes or self.axes != tuple(axis for axis in AXES if axis in self.axes):
            raise ConfigError(
                f"A width's axes are some of {', '.join(AXES)}, in this order, found {self.axes}."
            )
        if self.window not in WINDOWS:
            raise ConfigError(f"A width's window is one of {', '.join(WINDOWS)}, found {self.window!r}.")
        if self.turn < 0 or (self.turn and self.window in ("prefix", "salient")):
            still = "salient units, which do" if self.window == "salient" else "a prefix, which does"
            raise ConfigError(f"A width's turn is 0 or more, and 0 for {still} not move; found {self.turn}.")

    def kept(self, axis: Axis, size: int) -> int:
        """How many of an axis' units are kept."""
        # 0.2 * 5 is a little above 1 in floating point.
        return math.ceil(round(self.share * size, 9)) if axis in self.axes else size

    def indices(self, axis: Axis, size: int, block: int, order: UnitOrder | None = None) -> Indices:
        """Which of an axis' units are kept, ascending; -1 is the block of what belongs to none.

        Args:
            axis: whose units.
            size: how many there are.
            block: that they belong to.
            order: by salience, as a salient window needs it.

        Raises:
            ConfigError: for a salient window without an order.
        """
        count, every = self.kept(axis, size), np.arange(size)
        if count == size:
            return every
        match self.window:
            case "prefix":
                return every[:count]
            case "rolling":
                return np.sort((every[:count] - self.turn) % size)
            case "random":
                return np.sort(generator(self.turn, f"width {axis}", block + 1).permutation(size)[:count])
            case "salient":
                if order is None:
                    raise ConfigError(
                        f"A width {self} keeps the most salient units, and no order of them was measured; "
                        "set menu.width_window: salient, or take another window."
                    )
                return np.sort(order[axis, block][:count])
            case _:
                assert_never(self.window)

    def at_start(self) -> "Width":
        """As many units, with none moved or drawn: the same shapes."""
        return replace(self, window="prefix", turn=0)

    def __str__(self) -> str:
        """Such as ``0.5 of heads and ffn``."""
        moves = {"prefix": "", "salient": ", salient"}
        where = moves.get(self.window, f", {self.window} at {self.turn}")
        return f"{self.share:g} of {' and '.join(self.axes)}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedDropout:
    """FjORD (NeurIPS 2021): for each local step one of some leading parts of a client's width is drawn.

    Attributes:
        shares: of the whole model's width, ascending, each smaller than what the client holds; that is drawn
            as well, and all are as likely.
        axes: whose units are left out, of ``"heads"`` and ``"ffn"``: a step is then the narrower model's.

    Raises:
        ConfigError: at construction, for a value out of range.
    """

    shares: tuple[float, ...]
    axes: tuple[Axis, ...] = ("ffn",)

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ConfigError(f"Ordered dropout draws one of some ascending shares, found {self.shares}.")
        for share in self.shares:
            Width(share=share, axes=self.axes)
        beyond = [axis for axis in self.axes if axis not in ("heads", "ffn")]
        if beyond:
            raise ConfigError(
                f"Ordered dropout leaves out heads and ffn, for with {beyond[0]} norms and scores are of "
                "another width; choose width_axes among these two."
            )


def check_ordered(ordered: OrderedDropout, width: Width | None) -> None:
    """Raises ConfigError for parts that are none of what the client holds."""
    if width is not None and (width.window != "prefix" or width.axes != ordered.axes):
        raise ConfigError(
            f"Ordered dropout of {' and '.join(ordered.axes)} trains leading parts of a leading part of the "
            f"same axes, found a width {width}."
        )
    if width is not None and ordered.shares[-1] >= width.share:
        raise ConfigError(
            f"Ordered dropout draws shares below the {width.share:g} that the client holds, found "
            f"{ordered.shares[-1]:g}."
        )


def check_width(width: Width, *, split: bool, up_codec: str) -> None:
    """Raises ConfigError for what a narrower client cannot have beside its width."""
    if split:
        raise ConfigError(
            f"A width ({width}) has no cut, above which the server runs blocks of full width; drop one."
        )
    if up_codec.startswith(("top", "rank")):
        raise ConfigError(
            f"A client of a width ({width}) has other entries of a tensor from round to round, and up_codec "
            f"{up_codec} owes what it left out of them; choose bf16, int8, int4 or none."
        )
