"""The menu: every assignment a grid of knobs allows, small to large."""

import itertools
from dataclasses import dataclass
from typing import Literal

from fedray.assignment import Assignment, Dtype, HeadOnly, Lora, lora_on_top
from fedray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The knobs of a menu; each tuple lists the values one knob takes.

    Attributes:
        num_blocks: of the model.
        targets: adapted linears by the last part of their module name.
        ranks: of every trained block.
        depths: trained blocks, counted from the top; ``"all"`` is every block.
        head_only: also offer the head alone, without an adapter.
        max_steps: local steps; None leaves ``num_epochs`` in charge.
    """

    num_blocks: int
    targets: tuple[str, ...]
    ranks: tuple[int, ...] = (8,)
    depths: tuple[int | Literal["all"], ...] = ("all",)
    recompute: tuple[bool, ...] = (False,)
    dtypes: tuple[Dtype, ...] = ("fp32",)
    batch_sizes: tuple[int, ...] = (8,)
    scale: float = 2.0
    head_only: bool = False
    num_epochs: int = 1
    max_steps: int | None = None


def build_menu(grid: Grid) -> tuple[Assignment, ...]:
    """The grid's assignments, without repeats, in one order for any order of the knobs' values.

    Small to large: by the sum of ranks, then trained blocks, batch size, bf16 before fp32, and
    recomputation (less memory) before none.

    Raises:
        ConfigError: for a value out of range, or a grid that holds no assignment.
    """
    adapters: list[Lora | HeadOnly] = [HeadOnly()] if grid.head_only else []
    for depth, rank in itertools.product(grid.depths, grid.ranks):
        adapters.append(_lora(grid, grid.num_blocks if depth == "all" else depth, rank))
    knobs = itertools.product(adapters, grid.recompute, grid.dtypes, grid.batch_sizes)
    menu = {
        Assignment(
            blocks=tuple(range(grid.num_blocks)),
            adapter=adapter,
            dtype=dtype,
            # Without a trained block there is nothing to recompute: both values are one assignment.
            recompute=recompute and isinstance(adapter, Lora),
            batch_size=batch_size,
            num_epochs=grid.num_epochs,
            max_steps=grid.max_steps,
        )
        for adapter, recompute, dtype, batch_size in knobs
    }
    if not menu:
        raise ConfigError(
            f"The menu is empty: {len(grid.ranks)} ranks, {len(grid.depths)} depths, {len(grid.recompute)} "
            f"recompute, {len(grid.dtypes)} dtypes, {len(grid.batch_sizes)} batch_sizes; give each at least "
            "one value, or set head_only."
        )
    return tuple(sorted(menu, key=_size))


def _lora(grid: Grid, depth: int, rank: int) -> Lora:
    if rank < 1:
        raise ConfigError(f"A menu's ranks are 1 or more, found {rank}; head_only = true is for rank 0.")
    return lora_on_top(grid.num_blocks, depth, rank, targets=grid.targets, scale=grid.scale)


def _size(assignment: Assignment) -> tuple[int, int, int, bool, bool]:
    return (
        assignment.sum_of_ranks,
        assignment.num_trained_blocks,
        assignment.batch_size,
        assignment.dtype == "fp32",
        not assignment.recompute,
    )
