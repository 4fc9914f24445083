"""Which of the model's own weights, or of what is beside them, a client trains, and where it gets them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedray.adapter import Adapter, GlobalState, Place, head_name, part_of
from fedray.aggregation.rule import Aggregation
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.errors import ConfigError
from fedray.model.added import (
    PROMPT,
    ia3_shapes,
    is_added,
    prefix_shapes,
    prompt_shape,
    vocabulary_size,
    words_at,
)
from fedray.model.anatomy import Anatomy, backbone_prefix
from fedray.model.prefix import PREFIX, keys_and_values
from fedray.model.slices import head_place, narrowed_sizes, places_of
from fedray.seeds import derive_seed
from fedray.trained import Prompt, Weights
from fedray.width import Width


def trained_names(anatomy: Anatomy, assignment: Assignment) -> tuple[str, ...]:
    """Names of the weights that an assignment trains: the model's in its order, or what is beside them."""
    return tuple(trained_shapes(anatomy, assignment))


def trained_shapes(anatomy: Anatomy, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    """The same with their shapes."""
    adapter = assignment.adapter
    match adapter:
        case Lora() | HeadOnly():
            return {}
        case Prompt(num_tokens=num_tokens, deep=True):
            return dict(prefix_shapes(anatomy, assignment.blocks, num_tokens))
        case Prompt(num_tokens=num_tokens):
            return {PROMPT: prompt_shape(anatomy, num_tokens)}
        case Weights(part="ia3"):
            vectors = [ia3_shapes(anatomy, block) for block in _trained_blocks(adapter, assignment)]
            return {name: shape for of_block in vectors for name, shape in of_block.items()}
        case Weights():
            names = _own_names(anatomy, adapter, assignment)
            return {name: tuple(anatomy.model.get_parameter(name).shape) for name in names}
        case _:
            assert_never(adapter)


def _trained_blocks(adapter: Weights, assignment: Assignment) -> list[int]:
    return [block for block, trained in zip(assignment.blocks, adapter.trained, strict=True) if trained]


def _own_names(anatomy: Anatomy, adapter: Weights, assignment: Assignment) -> tuple[str, ...]:
    root = backbone_prefix(anatomy.model)
    paths = tuple(root + anatomy.block_path(block) for block in _trained_blocks(adapter, assignment))
    every = [name for name, _ in anatomy.model.named_parameters()]
    own = {name for name in every if name.startswith(paths)}
    if adapter.part == "bias":
        own = {name for name in own if name.rpartition(".")[2] == "bias"}
    if adapter.stem:
        pieces = anatomy.pieces()
        own |= {*pieces["stem"], *pieces["head"]} & set(every)
    return tuple(name for name in every if name in own)


def largest_shapes(anatomy: Anatomy, menu: Iterable[Assignment]) -> dict[str, tuple[int, ...]]:
    """The `trained_shapes` of all of a menu's assignments, each the largest that any of them has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for assignment in menu:
        for name, shape in trained_shapes(anatomy, assignment).items():
            shapes[name] = max(shape, shapes.get(name, shape))
    return shapes


def initial_weights(anatomy: Anatomy, menu: Iterable[Assignment], run_seed: int) -> dict[str, Tensor]:
    """All that any of the menu's assignments trains, before round 1, at its largest.

    The model's own are what they are, in its order. IA3's vectors are ones; a prompt is the embeddings of
    words drawn by the seed, as 2104.08691 has it, and a prefix such words' keys and values (2101.00190).
    """
    shapes = largest_shapes(anatomy, menu)
    own = [name for name, _ in anatomy.model.named_parameters() if name in shapes]
    weights = pretrained(anatomy.model, own)
    weights |= {name: torch.ones(shapes[name]) for name in sorted(shapes) if is_added(name)}
    if PROMPT in shapes:
        weights[PROMPT] = words_at(anatomy, _drawn_words(anatomy, shapes[PROMPT][0], run_seed))
    deep = {
        int(name.removeprefix(PREFIX)): shape for name, shape in shapes.items() if name.startswith(PREFIX)
    }
    if deep:
        ids = _drawn_words(anatomy, max(deep.values())[0], run_seed)
        found = keys_and_values(anatomy, ids, deep)
        weights |= {f"{PREFIX}{block}": found[block][: shape[0]].clone() for block, shape in deep.items()}
    return weights


def _drawn_words(anatomy: Anatomy, count: int, run_seed: int) -> Tensor:
    random = torch.Generator().manual_seed(derive_seed(run_seed, "initial prompt"))
    return torch.randint(vocabulary_size(anatomy), (count,), generator=random)


def pretrained(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """The values of the model's own weights before round 1, as fp32 copies."""
    return {name: model.get_parameter(name).detach().to(torch.float32, copy=True) for name in names}


def refuse_long_prompts(anatomy: Anatomy, assignments: Iterable[Assignment], max_length: int) -> None:
    """Raises ConfigError for prompts that make rows too long, ModelError for what a family does not have."""
    for assignment in assignments:
        trained_shapes(anatomy, assignment)
        prompt = assignment.adapter
        if not isinstance(prompt, Prompt) or anatomy.max_tokens is None:
            continue
        length = prompt.num_tokens
        if length + max_length > anatomy.max_tokens:
            raise ConfigError(
                f"A {prompt.word} of {length} tokens before a row of {max_length} makes "
                f"{length + max_length}, and this model takes {anatomy.max_tokens}; lower "
                "menu.prompt_tokens or data.max_length."
            )


def refuse_parts(rule: Aggregation, anatomy: Anatomy, assignments: Iterable[Assignment]) -> None:
    """Raises ConfigError for a rule that parts of a model cannot go with, ModelError for parts of none."""
    for bits in {a.weight_bits for a in assignments if a.weight_bits is not None}:
        if rule.moves_base:
            raise ConfigError(
                f"aggregation {rule.name!r} keeps changes of the whole frozen weights beside them, and a "
                f"client with {bits}-bit weights has rounded ones; choose another rule, or drop "
                "menu.weight_bits."
            )
    for sparsity in {a.sparsity for a in assignments if a.sparsity}:
        if rule.moves_base:
            raise ConfigError(
                f"aggregation {rule.name!r} keeps changes of the whole frozen weights beside them, and of a "
                f"client with a sparsity of {sparsity:g} many are gone; choose another rule, or drop "
                "menu.sparsities."
            )
    for width in {a.width for a in assignments if a.width is not None}:
        narrowed_sizes(anatomy, width)
        places_of(anatomy, width.at_start())  # whose axes are all known, whatever lies where
        if rule.moves_base:
            raise ConfigError(
                f"aggregation {rule.name!r} keeps changes of the whole frozen weights beside them, and a "
                f"client of a width {width} has a part of those; choose another rule, or drop menu.widths."
            )


def with_own_weights(
    anatomy: Anatomy, assignment: Assignment, state: GlobalState, adapter: Adapter
) -> Adapter:
    """What a client starts from, with the weights it trains, all of it as wide as its blocks are.

    Args:
        anatomy: of the whole model.
        assignment: the client's.
        state: that the weights are taken from.
        adapter: what else is sent, of full width.
    """
    places = places_of(anatomy, assignment.width)
    names, of_head = trained_names(anatomy, assignment), head_place(anatomy, assignment.width)
    own: dict[str, Place] = {name: places[name] for name in names if name in places}
    head = dict(adapter.head)
    if isinstance(assignment.adapter, Prompt):
        for name in names:
            own |= _prompt_place(name, assignment.adapter.num_tokens, state.adapter.weights[name])
    if of_head is not None:
        for name in (name for name in adapter.head if name.endswith("weight")):
            own[head_name(name)] = of_head
            head[name] = part_of(head[name], of_head)
    weights = {name: part_of(state.adapter.weights[name], own.get(name)) for name in names}
    return replace(adapter, head=head, weights=weights, places=own)


def as_wide(anatomy: Anatomy, width: Width | None, adapter: Adapter) -> Adapter:
    """The parts of weights and head that a model of this width has; all of them without a width."""
    places, of_head = places_of(anatomy, width), head_place(anatomy, width)
    weights = {name: part_of(tensor, places.get(name)) for name, tensor in adapter.weights.items()}
    head = {
        name: part_of(tensor, of_head if name.endswith("weight") else None)
        for name, tensor in adapter.head.items()
    }
    return replace(adapter, head=head, weights=weights)


def _prompt_place(name: str, num_tokens: int, whole: Tensor) -> dict[str, Place]:
    if num_tokens > len(whole):
        raise ConfigError(
            f"A prompt or prefix of {num_tokens} tokens was asked for, and this run's has {len(whole)}; "
            "raise menu.prompt_tokens, or ask for fewer."
        )
    return {} if num_tokens == len(whole) else {name: (torch.arange(num_tokens), None)}
