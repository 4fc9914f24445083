"""What one client does in one round: one frozen value, checked in one place.

A value that the engine cannot run is refused here with a sentence, never ignored further down.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from fedray.activations import check_8_bits, check_forward_only
from fedray.codec_names import check_update_codecs
from fedray.cuts import check_black_box, check_cut
from fedray.errors import ConfigError
from fedray.exits import check_exits
from fedray.trained import (
    PARTS,
    HeadOnly,
    Lora,
    Prompt,
    Weights,
    check_frozen,
    check_lora,
    check_prompt,
    check_weights,
    lora_on_top,
    of_whole_blocks,
    weights_on_top,
)
from fedray.width import OrderedDropout, Width, check_ordered, check_width

__all__ = [
    "ATTENTIONS",
    "DTYPES",
    "WEIGHT_BITS",
    "Adapter",
    "Assignment",
    "Attention",
    "Dtype",
    "HeadOnly",
    "Lora",
    "WeightBits",
    "lora_on_top",
    "of_whole_blocks",
    "weights_on_top",
]

Dtype = Literal["fp32", "bf16"]
Attention = Literal["eager", "memory_efficient"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
ATTENTIONS: tuple[Attention, ...] = ("eager", "memory_efficient")
WeightBits = Literal[8, 4]
WEIGHT_BITS: tuple[WeightBits, ...] = (8, 4)


Adapter = Lora | Weights | Prompt | HeadOnly


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one client does in one round. Hashable, so it keys footprints, packs and audits.

    Attributes:
        blocks: the blocks the client executes, in ascending order; a subset makes a submodel of that depth.
            Under a cut the leading ones, of which there may be none.
        split: true if a server runs the other blocks, false if there are none or they are left out.
        tail: trailing blocks, head and labels kept by the client (the U-shape); needs ``split``.
        local_loss: the client trains against an auxiliary head at its cut and no gradient comes down
            (DTFL, 2312.05642; FedSplitX, 2310.14579); needs ``split``.
        cut_codec: what hidden states and their gradients are sent as: ``none`` (the dtype's own), ``bf16``,
            ``int8`` or ``int4`` with a scale per token, ``top10`` (the largest 10 % of each token).
        up_codec: what the client's own share of its update is sent as: ``none``, ``bf16``, ``int8`` or
            ``int4`` with scales, ``top10`` (the largest 10 % of each tensor), ``rank4`` (each matrix cut to
            four ranks). What the last two leave out stays with the client and joins its next update. Of
            forward-only clients also ``seeds256``: a number for each of as many shared seeds.
        down_codec: what the share that it starts from is sent as, likewise; its update is a delta against
            what it received.
        adapter: what is trained beside the head.
        dtype: of the frozen weights and of the arithmetic; trained tensors and their optimizer stay fp32.
        recompute: activation checkpointing, one block at a time, for blocks with a backward pass.
        int8_activations: how many blocks with a backward pass, from the lowest, keep what it needs in 8 bits.
        batch_size: rows in one local step.
        num_epochs: passes over the client's own rows, unless ``max_steps`` is given.
        max_steps: local steps, whatever the number of rows.
        width: the part of every block's width that the client holds; None is all of it.
        weight_bits: bits of the frozen linears of the client's own blocks, 8 or 4; None is the dtype's own.
        sparsity: share of zeros among the weights of each frozen linear of its own blocks, the smallest ones.
        exits: depths, in blocks, at which the client trains a head of its own, all by one loss. Where the
            last one is the client's whole depth, its head is there and the model's last one is absent.
        ordered: parts of the width of which one is drawn for every step; None trains all of it in each.
        perturbations: random directions along which a forward-only client looks at its loss in every step, to
            do without a backward pass (`fedray.training.forward_only`); 0 has one. Under a cut a black-box
            client: each look sends hidden states up and gets a loss, and its own share alone is trained.

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
    local_loss: bool = False
    cut_codec: str = "none"
    up_codec: str = "none"
    down_codec: str = "none"
    width: Width | None = None
    weight_bits: WeightBits | None = None
    sparsity: float = 0.0
    exits: tuple[int, ...] = ()
    perturbations: int = 0
    ordered: OrderedDropout | None = None
    int8_activations: int = 0

    def __post_init__(self) -> None:
        check_frozen(self.adapter, width=self.width, weight_bits=self.weight_bits, sparsity=self.sparsity)
        _check_cut(self)
        check_update_codecs(
            up_codec=self.up_codec, down_codec=self.down_codec, perturbations=self.perturbations
        )
        if self.width is not None:
            check_width(self.width, split=self.split, up_codec=self.up_codec)
        _check_blocks(self)
        check_exits(self.exits, self.blocks, split=self.split)
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, found {self.dtype!r}.")
        _check_local_work(self)
        match self.adapter:
            case Lora():
                check_lora(self.adapter, split=self.split, num_blocks=self.cut, tail=self.tail)
            case Weights():
                check_weights(self.adapter, split=self.split, num_blocks=self.cut)
            case Prompt():
                check_prompt(self.adapter, split=self.split, up_codec=self.up_codec)
            case HeadOnly():
                pass
            case _:
                assert_never(self.adapter)
        if self.recompute and not self._recomputes_something():
            raise ConfigError("recompute needs a trained block of the client's own: drop it or give a rank.")
        check_8_bits(
            self.int8_activations,
            backward=self.num_backward_blocks,
            split=self.split,
            recompute=self.recompute,
            perturbations=self.perturbations,
        )
        check_forward_only(self.perturbations, recompute=self.recompute)
        _check_ordered(self, self.ordered)

    @property
    def cut(self) -> int:
        """How many leading blocks the client executes; under ``split`` the server runs those above."""
        return len(self.blocks)

    @property
    def first_trained_block(self) -> int | None:
        """The lowest trained block, by its place: nothing below it needs a backward pass."""
        return next((place for place, trained in enumerate(self.trained) if trained), None)

    @property
    def num_backward_blocks(self) -> int:
        """How many of the executed blocks have a backward pass: from the lowest trained one up."""
        first = self.first_trained_block
        return 0 if first is None else max(0, len(self.blocks) - first)

    @property
    def trained(self) -> tuple[bool, ...]:
        """Of each block, by its place among those that have a rank, whether it is trained.

        Above a prompt all of them have a backward pass, and count. Above a black-box client's cut none does.
        """
        match self.adapter:
            case Lora(ranks=ranks):
                still = self.cut if self.is_black_box else len(ranks)
                return tuple(rank > 0 and block < still for block, rank in enumerate(ranks))
            case Weights(trained=trained):
                return trained
            case Prompt():
                return (True,) * len(self.blocks)
            case HeadOnly():
                return ()
            case _:
                assert_never(self.adapter)

    @property
    def is_submodel(self) -> bool:
        """Whether the executed blocks skip some; leading blocks alone do not tell what is left out above."""
        return self.blocks != tuple(range(len(self.blocks)))

    @property
    def frozen_bottom(self) -> bool:
        """Whether nothing below the cut is trained: no gradient comes down, and activations can be kept."""
        if not self.split:
            return False
        first = self.first_trained_block
        return (first is None or first >= self.cut) and not self.local_loss

    @property
    def gradient_comes_down(self) -> bool:
        """Whether the server answers the client's activations with their gradient."""
        return self.split and not (self.frozen_bottom or self.local_loss or self.is_black_box)

    @property
    def is_black_box(self) -> bool:
        """Whether the server answers activations with a loss alone."""
        return self.split and self.perturbations > 0

    @property
    def rides_per_step(self) -> int:
        """How often a local step goes up to the server: a black-box client's twice for each direction."""
        return 2 * self.perturbations if self.is_black_box else 1

    def client_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """The blocks the client executes of a model with so many: those below the cut, and its tail."""
        return (*self.blocks, *range(num_blocks - self.tail, num_blocks))

    def server_blocks(self, num_blocks: int) -> range:
        """The blocks the server runs for this client; none without a cut."""
        return range(self.cut, num_blocks - self.tail) if self.split else range(0)

    def _recomputes_something(self) -> bool:
        trained = self.trained
        if not trained:
            return False
        own = self.client_blocks(len(trained)) if self.split else range(len(trained))
        return any(trained[block] for block in own)

    @property
    def num_trained_blocks(self) -> int:
        """How many blocks are trained."""
        return sum(self.trained)

    @property
    def adapts_all_it_runs(self) -> bool:
        """Whether it is LoRA on every block, all of them run by the client: what submodels are made of."""
        return isinstance(self.adapter, Lora) and not self.split and all(self.adapter.ranks)

    @property
    def trains_all_it_holds(self) -> bool:
        """Whether nothing is frozen: all weights of every block, with the stem's and the last norm's."""
        return isinstance(self.adapter, Weights) and self.adapter.part == "all" and self.adapter.stem

    @property
    def max_rank(self) -> int:
        """The largest rank of any block, 0 without an adapter."""
        return max(self.adapter.ranks) if isinstance(self.adapter, Lora) else 0

    @property
    def sum_of_ranks(self) -> int:
        """Ranks over all trained blocks: what can be learnt and what it costs to send grow with it."""
        own = self.adapter.ranks if isinstance(self.adapter, Lora) else ()
        return sum(rank for rank, trained in zip(own, self.trained, strict=False) if trained)

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
            kind = {"lora": Lora, "weights": Weights, "prompt": Prompt, "headonly": HeadOnly}[
                adapter.pop("kind")
            ]
            if fields["width"] is not None:
                fields["width"] = Width(**_with_tuples(fields["width"]))
            if fields.get("ordered") is not None:
                fields["ordered"] = OrderedDropout(**_with_tuples(fields["ordered"]))
            return Assignment(adapter=kind(**_with_tuples(adapter)), **_with_tuples(fields))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"Not an assignment: {text!r} ({error}).") from error

    def __str__(self) -> str:
        """A short reading for tables: ``rank 8 on the top 2 of 6, recompute, batch 4``."""
        parts = [_adapter_words(self) + _forward_words(self)]
        if self.is_submodel:
            parts.append(f"blocks {','.join(map(str, self.blocks))}")
        parts += _width_words(self)
        if self.split:
            parts.append(_cut_words(self))
        if self.dtype != "fp32":
            parts.append(self.dtype)
        parts += _memory_words(self)
        if self.exits:
            parts.append(f"exits {','.join(map(str, self.exits))}")
        parts += [
            f"{way} {codec}"
            for way, codec in (("up", self.up_codec), ("down", self.down_codec))
            if codec != "none"
        ]
        return ", ".join([*parts, f"batch {self.batch_size}"])


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _adapter_words(assignment: Assignment) -> str:
    if isinstance(assignment.adapter, HeadOnly):
        return "head only" if assignment.split else f"head only over {len(assignment.blocks)} blocks"
    if isinstance(assignment.adapter, Prompt):
        prompt = assignment.adapter
        return f"{prompt.word} of {prompt.num_tokens} over {len(assignment.blocks)} blocks"
    depth, total = assignment.num_trained_blocks, len(assignment.trained)
    where = f"all {total} blocks" if depth == total else f"{depth} of {total} blocks"
    if isinstance(assignment.adapter, Weights):
        what = PARTS[assignment.adapter.part]
        return f"{what} of {where}{' and the stem' if assignment.adapter.stem else ''}"
    ranks = sorted({rank for rank in assignment.adapter.ranks if rank})
    what = "" if assignment.adapter.train_a else " (B alone)"
    return f"rank {'/'.join(map(str, ranks))}{what} on {where}"


def _width_words(assignment: Assignment) -> list[str]:
    own = [] if assignment.width is None else [f"width {assignment.width}"]
    if assignment.ordered is None:
        return own
    drawn = ", ".join(f"{share:g}" for share in assignment.ordered.shares)
    return [*own, f"ordered dropout to {drawn} of {' and '.join(assignment.ordered.axes)}"]


def _memory_words(assignment: Assignment) -> list[str]:
    given = {
        f"{assignment.weight_bits}-bit weights": assignment.weight_bits is not None,
        f"{assignment.sparsity:g} of the weights zero": assignment.sparsity > 0,
        "recompute": assignment.recompute,
        f"8-bit activations of {assignment.int8_activations} blocks": assignment.int8_activations > 0,
    }
    return [words for words, holds in given.items() if holds]


def _forward_words(assignment: Assignment) -> str:
    tried = assignment.perturbations
    return f" forward only, {tried} direction{'s' if tried > 1 else ''}" if tried else ""


def _cut_words(assignment: Assignment) -> str:
    parts = [f"cut {assignment.cut}"]
    if assignment.tail:
        parts.append(f"tail {assignment.tail}")
    if assignment.local_loss:
        parts.append("local loss")
    if assignment.cut_codec != "none":
        parts.append(assignment.cut_codec)
    return " ".join(parts)


def _check_cut(a: Assignment) -> None:
    below = a.trained[: a.cut]
    check_cut(split=a.split, tail=a.tail, local_loss=a.local_loss, cut_codec=a.cut_codec, below=below)
    if a.is_black_box:
        check_black_box(
            a.perturbations, tail=a.tail, local_loss=a.local_loss, up_codec=a.up_codec, below=below
        )


def _check_ordered(a: Assignment, ordered: OrderedDropout | None) -> None:
    if ordered is None:
        return
    check_ordered(ordered, a.width)
    if not isinstance(a.adapter, Weights) or a.adapter.part != "all" or a.perturbations:
        raise ConfigError(
            "Ordered dropout leaves out trained weights and their gradients: it goes with full fine-tuning "
            "and a backward pass."
        )


def _check_local_work(assignment: Assignment) -> None:
    for name in ("batch_size", "num_epochs", "max_steps"):
        value = getattr(assignment, name)
        if value is not None and value < 1:
            absent = " or absent" if name == "max_steps" else ""
            raise ConfigError(f"{name} must be at least 1{absent}, found {value}.")


def _check_blocks(assignment: Assignment) -> None:
    a = assignment
    leading = a.blocks == tuple(range(len(a.blocks)))
    ascending = list(a.blocks) == sorted(set(a.blocks)) and min(a.blocks, default=0) >= 0
    if a.split and not leading:
        raise ConfigError(f"Below a cut a client runs blocks 0, 1, ... in order, found {a.blocks}.")
    if not a.split and not (a.blocks and ascending):
        raise ConfigError(f"An assignment runs some blocks in ascending order, found {a.blocks}.")
