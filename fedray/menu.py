"""The menu: every assignment a grid of knobs allows, small to large."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from fedray.assignment import (
    Adapter,
    Assignment,
    Dtype,
    HeadOnly,
    Lora,
    WeightBits,
    lora_on_top,
    of_whole_blocks,
    weights_on_top,
)
from fedray.codec_names import num_seeds
from fedray.errors import ConfigError
from fedray.trained import Prompt, Weights
from fedray.width import AXES, Axis, Width, Window

Tuning = Literal["lora", "full", "bitfit", "ia3", "prompt", "prefix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The knobs of a menu; each tuple lists the values one knob takes.

    Attributes:
        num_blocks: of the model.
        targets: adapted linears by the last part of their module name.
        ranks: of every trained block.
        train_a: whether LoRA's A is trained beside B.
        depths: trained blocks, counted from the top; ``"all"`` is every block.
        tunings: what a trained block trains: LoRA factors at every rank, ``"full"`` all its weights (and the
            stem's where every block is trained), ``"bitfit"`` its biases, ``"ia3"`` vectors that rescale it;
            ``"prompt"`` and ``"prefix"`` train one of every length, over all blocks.
        prompt_tokens: lengths of prompts and prefixes.
        widths: shares of the width that is kept along ``width_axes``; 1 is the whole. Without cuts or LoRA.
        exits: depths with a head of their own behind them, in every whole model; of each, as many leading
            blocks alone are offered too.
        int8_activations: blocks with a backward pass, from the lowest, that keep what it needs in 8 bits;
            ``"all"`` is every one. Without cuts or recomputation.
        perturbations: random directions a step of forward-only clients; 0 has a backward pass. Under a cut
            these are black-box clients.
        head_only: also offer the head alone, without an adapter.
        cuts: leading blocks that a client keeps while a server runs the others; with every other knob.
        tails: trailing blocks that it keeps too; ``cut_codecs`` what crosses a cut is sent as;
            ``local_loss`` whether it trains against a head at its cut. They need ``cuts``.
        whole: whole models too, beside those with a cut.
        up_codecs: what an update is sent as; ``down_codecs`` what a client starts from; with every other
            knob.
        max_steps: local steps; None leaves ``num_epochs`` in charge.
    """

    num_blocks: int
    targets: tuple[str, ...]
    ranks: tuple[int, ...] = (8,)
    depths: tuple[int | Literal["all"], ...] = ("all",)
    tunings: tuple[Tuning, ...] = ("lora",)
    prompt_tokens: tuple[int, ...] = (20,)
    widths: tuple[float, ...] = (1.0,)
    width_axes: tuple[Axis, ...] = ("ffn",)
    width_window: Window = "prefix"
    recompute: tuple[bool, ...] = (False,)
    int8_activations: tuple[int | Literal["all"], ...] = (0,)
    dtypes: tuple[Dtype, ...] = ("fp32",)
    weight_bits: tuple[WeightBits | None, ...] = (None,)
    sparsities: tuple[float, ...] = (0.0,)
    batch_sizes: tuple[int, ...] = (8,)
    scale: float = 2.0
    train_a: bool = True
    exits: tuple[int, ...] = ()
    perturbations: tuple[int, ...] = (0,)
    head_only: bool = False
    num_epochs: int = 1
    max_steps: int | None = None
    cuts: tuple[int, ...] = ()
    tails: tuple[int, ...] = (0,)
    cut_codecs: tuple[str, ...] = ("none",)
    local_loss: tuple[bool, ...] = (False,)
    whole: bool = True
    up_codecs: tuple[str, ...] = ("none",)
    down_codecs: tuple[str, ...] = ("none",)


_CUT_KNOBS = ("cut", "tail", "cut_codec", "local_loss", "recompute", "perturbations", "up_codec")
# Of these a whole model may have a value that no entry with a cut has.
_OF_WHOLE = ("recompute", "perturbations", "up_codec")


def build_menu(grid: Grid) -> tuple[Assignment, ...]:
    """The grid's assignments, without repeats, in one order for any order of the knobs' values.

    Small to large: by the sum of ranks, then width, trained blocks, batch size, bf16 before fp32, few bits
    before all, recomputation (less memory) before none, and cuts from low to high before the whole model.
    Combinations that an assignment refuses are left out, such as recomputation where no block is trained.

    Raises:
        ConfigError: for a value out of range, a value of which every combination is refused, or a grid
            that holds no assignment.
    """
    _check_exits(grid)
    whole = _rounded(grid, dict.fromkeys(_whole(grid)))
    shallow = [e for depth in grid.exits for e in _rounded(grid, _whole(_leading(grid, depth)))]
    _check_rounded(grid, (*(whole if grid.whole else ()), *shallow))
    menu = [*dict.fromkeys(shallow), *(whole if grid.whole else ()), *_cut(grid, whole)]
    if not menu:
        raise ConfigError(f"The menu is empty: {_why_empty(grid)}")
    return tuple(sorted(menu, key=_size))


def _why_empty(grid: Grid) -> str:
    names = ("ranks", "depths", "recompute", "dtypes", "batch_sizes")
    counts = [(len(getattr(grid, name)), name) for name in names]
    if all(count for count, _ in counts):
        return (
            "each combination of its values is refused, such as recompute: [true] with perturbations above 0 "
            "alone, few bits with tunings: [full], or whole: false without cuts; give a value that goes with "
            "the others."
        )
    given = ", ".join(f"{count} {name}" for count, name in counts)
    return f"{given}; give each at least one value, or set head_only."


def _whole(grid: Grid) -> Iterator[Assignment]:
    adapters = _adapters(grid)
    frozen = [(bits, zeros) for bits in grid.weight_bits for zeros in grid.sparsities if not (bits and zeros)]
    steps = itertools.product(adapters, grid.recompute, grid.dtypes, frozen, grid.batch_sizes)
    links = itertools.product(grid.up_codecs, grid.down_codecs, _widths(grid), grid.perturbations)
    for (adapter, recompute, dtype, (bits, zeros), batch_size), (up, down, width, tried) in itertools.product(
        steps, links
    ):
        if width is not None and of_whole_blocks(adapter):
            continue  # whole blocks alone
        if (bits is not None or zeros) and isinstance(adapter, Weights):
            continue  # frozen weights alone
        if num_seeds(up) is not None and not tried:
            continue  # forward-only clients alone
        if tried and recompute:
            continue  # nothing is kept for a backward pass
        yield Assignment(
            blocks=tuple(range(grid.num_blocks)),
            adapter=adapter,
            dtype=dtype,
            weight_bits=bits,
            sparsity=zeros,
            # Without a trained block there is nothing to recompute: both values are one assignment.
            recompute=recompute and not isinstance(adapter, HeadOnly),
            batch_size=batch_size,
            num_epochs=grid.num_epochs,
            max_steps=grid.max_steps,
            up_codec=up,
            down_codec=down,
            width=width,
            exits=tuple(sorted(grid.exits)),
            perturbations=tried,
        )


def _rounded(grid: Grid, plain: Iterable[Assignment]) -> tuple[Assignment, ...]:
    """The entries, each with so many blocks' activations in 8 bits as are asked for and it can have."""
    entries = []
    for entry, asked in itertools.product(plain, grid.int8_activations):
        count = entry.num_backward_blocks if asked == "all" else asked
        can = not (entry.recompute or entry.perturbations) and count <= entry.num_backward_blocks
        if not count or can:
            entries.append(replace(entry, int8_activations=count))
    return tuple(dict.fromkeys(entries))


def _check_rounded(grid: Grid, entries: Iterable[Assignment]) -> None:
    found = {0, *(entry.int8_activations for entry in entries)}
    for asked in grid.int8_activations:
        if asked in found or (asked == "all" and max(found)):
            continue
        raise ConfigError(
            f"menu.int8_activations lists {asked}, and no entry has so many blocks of its own with a "
            "backward pass that keeps activations; lower it, offer deeper ones, or drop it."
        )


def _leading(grid: Grid, depth: int) -> Grid:
    """The same over as many leading blocks: with the exits there are, and the depths that can be trained."""
    return replace(
        grid,
        num_blocks=depth,
        exits=tuple(own for own in grid.exits if own <= depth),
        depths=tuple(own for own in grid.depths if own == "all" or own <= depth),
    )


def _check_exits(grid: Grid) -> None:
    deep = [depth for depth in grid.exits if depth >= grid.num_blocks]
    if deep:
        raise ConfigError(
            f"An exit is a head behind some blocks, and behind all {grid.num_blocks} stands the model's last "
            f"one; found {deep[0]}, give 1 to {grid.num_blocks - 1}."
        )


def _widths(grid: Grid) -> list[Width | None]:
    axes = tuple(axis for axis in AXES if axis in grid.width_axes)
    return [
        None if share == 1 else Width(share=share, axes=axes, window=grid.width_window)
        for share in grid.widths
    ]


def _adapters(grid: Grid) -> list[Adapter]:
    adapters: list[Adapter] = [HeadOnly()] if grid.head_only else []
    for tuning, depth in itertools.product(grid.tunings, grid.depths):
        count = grid.num_blocks if depth == "all" else depth
        match tuning:
            case "lora":
                adapters += [_lora(grid, count, rank) for rank in grid.ranks]
            case "full":
                stem = depth == "all"
                adapters.append(weights_on_top(grid.num_blocks, count, "all", stem=stem))
            case "bitfit":
                adapters.append(weights_on_top(grid.num_blocks, count, "bias"))
            case "ia3":
                adapters.append(weights_on_top(grid.num_blocks, count, "ia3"))
            case "prompt" | "prefix":
                deep = tuning == "prefix"
                adapters += [Prompt(num_tokens=length, deep=deep) for length in grid.prompt_tokens]
            case _:
                assert_never(tuning)
    return adapters


def _cut(grid: Grid, whole: tuple[Assignment, ...]) -> list[Assignment]:
    """Every whole entry at every cut, but for those that an assignment refuses."""
    menu: list[Assignment] = []
    refused: dict[tuple[str, object], ConfigError] = {}
    of_full_width = [e for e in whole if e.width is None and not e.int8_activations]
    for entry, cut, tail, codec, local_loss in itertools.product(
        of_full_width, grid.cuts, grid.tails, grid.cut_codecs, grid.local_loss
    ):
        blocks = tuple(range(cut))
        try:
            _check_room(grid.num_blocks, cut, tail)
            menu.append(
                replace(
                    entry,
                    exits=(),
                    blocks=blocks,
                    split=True,
                    tail=tail,
                    cut_codec=codec,
                    local_loss=local_loss,
                )
            )
        except ConfigError as refusal:
            values = cut, tail, codec, local_loss, entry.recompute, entry.perturbations, entry.up_codec
            for name, value in zip(_CUT_KNOBS, values, strict=True):
                refused.setdefault((name, value), refusal)
    for (name, value), why in refused.items():
        others = whole if grid.whole and name in _OF_WHOLE else ()
        # A value that no entry has would be accepted and ignored.
        if not any(getattr(entry, name) == value for entry in (*menu, *others)):
            raise why
    return menu


def _check_room(num_blocks: int, cut: int, tail: int) -> None:
    """The head alone has no ranks that would tell how many blocks there are."""
    if cut + tail >= num_blocks:
        raise ConfigError(
            f"A cut leaves the server at least one block: cut {cut} and tail {tail} are all {num_blocks}; "
            "lower the one or the other, or offer the whole model."
        )


def _lora(grid: Grid, depth: int, rank: int) -> Lora:
    if rank < 1:
        raise ConfigError(f"A menu's ranks are 1 or more, found {rank}; head_only = true is for rank 0.")
    return lora_on_top(
        grid.num_blocks, depth, rank, targets=grid.targets, scale=grid.scale, train_a=grid.train_a
    )


def _size(
    assignment: Assignment,
) -> tuple[int, float, int, int, bool, int, float, bool, int, int, bool, int, int, bool, str, str, str]:
    return (
        assignment.sum_of_ranks,
        1.0 if assignment.width is None else assignment.width.share,
        assignment.num_trained_blocks,
        assignment.batch_size,
        assignment.dtype == "fp32",
        assignment.weight_bits or 32,
        -assignment.sparsity,
        not assignment.recompute,
        -assignment.int8_activations,
        assignment.perturbations,
        not assignment.split,
        assignment.cut,
        assignment.tail,
        assignment.local_loss,
        assignment.cut_codec,
        assignment.up_codec,
        assignment.down_codec,
    )
