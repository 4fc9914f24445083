"""What one client does in one round: one frozen value, checked in one place.

Every part of the design has its field from the first day. A value that the engine cannot run
yet is refused here with a sentence, never ignored further down.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from fedray.errors import ConfigError

Dtype = Literal["fp32", "bf16"]
Attention = Literal["eager", "memory_efficient"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
ATTENTIONS: tuple[Attention, ...] = ("eager", "memory_efficient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """LoRA (2106.09685) on chosen linears, with a rank of its own in every block.

    Attributes:
        ranks: one per block the client executes, in order; 0 leaves that block frozen.
        targets: the adapted linears by the last part of their module name (``"query"``, ``"q_proj"``).
        scale: alpha / rank, the factor on B A. One scale for all ranks keeps a rank a matter of
            capacity and not of step size.
    """

    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    scale: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly:
    """No adapter: the task's head alone is trained."""


Adapter = Lora | HeadOnly


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one client does in one round. Hashable, so it keys footprints, packs and audits.

    Attributes:
        blocks: the blocks the client executes, in order.
        split: true if a server runs the other blocks, false if there are none or they are left out.
        tail: trailing blocks, head and labels kept by the client (the U-shape); needs ``split``.
        adapter: what is trained beside the head.
        dtype: of the frozen weights and of the arithmetic; trained tensors and their optimizer stay fp32.
        recompute: activation checkpointing, one block at a time, for blocks with a backward pass.
        batch_size: rows in one local step.
        num_epochs: passes over the client's own rows, unless ``max_steps`` is given.
        max_steps: local steps, whatever the number of rows.
        width: share of every block's width the client holds.
        weight_bits: bits of a frozen weight; None is the dtype's own.

    Raises:
        ConfigError: at construction, for a value out of range or a combination not supported.
    """

    blocks: tuple[int, ...]
    adapter: Adapter
    dtype: Dtype = "fp32"
    recompute: bool = False
    batch_size: int = 8
    num_epochs: int = 1
    max_steps: int | None = None
    split: bool = False
    tail: int = 0
    width: float = 1.0
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        _refuse_what_does_not_run_yet(self)
        if not self.blocks or list(self.blocks) != list(range(len(self.blocks))):
            raise ConfigError(f"An assignment runs blocks 0, 1, ... in order, found {self.blocks}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, found {self.dtype!r}.")
        for name, value in (("batch_size", self.batch_size), ("num_epochs", self.num_epochs)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1 or absent, found {self.max_steps}.")
        if isinstance(self.adapter, Lora):
            _check_lora(self.adapter, len(self.blocks))
        if self.recompute and self.first_trained_block is None:
            raise ConfigError("recompute needs a trained block: drop it or give a rank above 0.")

    @property
    def first_trained_block(self) -> int | None:
        """The lowest block with a rank above 0: nothing below it needs a backward pass."""
        if isinstance(self.adapter, HeadOnly):
            return None
        return next((i for i, rank in zip(self.blocks, self.adapter.ranks, strict=True) if rank), None)

    @property
    def num_trained_blocks(self) -> int:
        """How many blocks carry a trained adapter."""
        return 0 if isinstance(self.adapter, HeadOnly) else sum(rank > 0 for rank in self.adapter.ranks)

    @property
    def max_rank(self) -> int:
        """The largest rank of any block, 0 without an adapter."""
        return 0 if isinstance(self.adapter, HeadOnly) else max(self.adapter.ranks)

    @property
    def sum_of_ranks(self) -> int:
        """Ranks over all blocks: what an adapter can learn and what it costs to send grow with it."""
        return 0 if isinstance(self.adapter, HeadOnly) else sum(self.adapter.ranks)

    def num_steps(self, num_rows: int) -> int:
        """Local steps of a client with ``num_rows`` rows; the last batch of an epoch may be short."""
        if self.max_steps is not None:
            return self.max_steps
        return self.num_epochs * -(-num_rows // self.batch_size)

    def to_json(self) -> str:
        """One line that `from_json` reads back; keys in a fixed order."""
        fields = dataclasses.asdict(self)
        fields["adapter"] = {"kind": type(self.adapter).__name__.lower(), **fields["adapter"]}
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> "Assignment":
        """The assignment that `to_json` wrote. Raises ConfigError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            adapter = dict(fields.pop("adapter"))
            kind = {"lora": Lora, "headonly": HeadOnly}[adapter.pop("kind")]
            lists = {k: tuple(v) if isinstance(v, list) else v for k, v in adapter.items()}
            return Assignment(adapter=kind(**lists), **{**fields, "blocks": tuple(fields["blocks"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"Not an assignment: {text!r} ({error}).") from error

    def __str__(self) -> str:
        """A short reading for tables: ``rank 8 on the top 2 of 6, recompute, batch 4``."""
        parts = [_adapter_words(self)]
        if self.dtype != "fp32":
            parts.append(self.dtype)
        if self.recompute:
            parts.append("recompute")
        return ", ".join([*parts, f"batch {self.batch_size}"])


def lora_on_top(
    num_blocks: int, depth: int, rank: int, *, targets: tuple[str, ...], scale: float = 2.0
) -> Lora:
    """A rank on the top ``depth`` of ``num_blocks`` blocks, the others frozen. Raises ConfigError."""
    if not 1 <= depth <= num_blocks:
        raise ConfigError(f"depth counts trained blocks from the top, 1 to {num_blocks}, found {depth}.")
    return Lora(ranks=(0,) * (num_blocks - depth) + (rank,) * depth, targets=targets, scale=scale)


def _adapter_words(assignment: Assignment) -> str:
    if isinstance(assignment.adapter, HeadOnly):
        return f"head only over {len(assignment.blocks)} blocks"
    ranks = sorted({rank for rank in assignment.adapter.ranks if rank})
    depth, total = assignment.num_trained_blocks, len(assignment.blocks)
    where = f"all {total} blocks" if depth == total else f"{depth} of {total} blocks"
    return f"rank {'/'.join(map(str, ranks))} on {where}"


def _refuse_what_does_not_run_yet(assignment: Assignment) -> None:
    if assignment.split or assignment.tail:
        raise ConfigError("split = true and tail > 0 need the server's sweep, which this version lacks.")
    if assignment.width != 1.0:
        raise ConfigError(f"width = {assignment.width} needs sliced submodels; this version has width = 1.")
    if assignment.weight_bits is not None:
        raise ConfigError(f"weight_bits = {assignment.weight_bits} is not supported; choose a dtype instead.")


def _check_lora(lora: Lora, num_blocks: int) -> None:
    if len(lora.ranks) != num_blocks:
        raise ConfigError(f"Lora needs one rank per block: {num_blocks} blocks, {len(lora.ranks)} ranks.")
    if min(lora.ranks) < 0 or max(lora.ranks) == 0:
        raise ConfigError(f"Lora ranks are 0 or more, one above 0, found {lora.ranks}; HeadOnly has none.")
    if not isinstance(lora.targets, tuple) or not lora.targets:
        raise ConfigError(
            f"Lora needs a tuple of at least one target linear, such as ('q_proj',), found {lora.targets!r}."
        )
    if not 0 < lora.scale < math.inf:
        raise ConfigError(f"Lora scale (alpha / rank) must be a number above 0, found {lora.scale}.")
