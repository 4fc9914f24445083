"""Which of the model's own weights an assignment trains, and where a client gets them from."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedray.adapter import Adapter, GlobalState, Place, head_name, part_of
from fedray.aggregation.rule import Aggregation
from fedray.assignment import Assignment, Weights
from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy, backbone_prefix
from fedray.model.slices import head_place, places_of


def trained_names(anatomy: Anatomy, assignment: Assignment) -> tuple[str, ...]:
    """The model's names of the weights that an assignment trains, in the model's order."""
    adapter = assignment.adapter
    if not isinstance(adapter, Weights):
        return ()
    root = backbone_prefix(anatomy.model)
    blocks = zip(assignment.blocks, adapter.trained, strict=True)
    paths = tuple(root + anatomy.block_path(block) for block, trained in blocks if trained)
    every = [name for name, _ in anatomy.model.named_parameters()]
    own = {name for name in every if name.startswith(paths)}
    if adapter.part == "bias":
        own = {name for name in own if name.rpartition(".")[2] == "bias"}
    if adapter.stem:
        pieces = anatomy.pieces()
        own |= {*pieces["stem"], *pieces["head"]} & set(every)
    return tuple(name for name in every if name in own)


def all_trained_names(anatomy: Anatomy, assignments: Iterable[Assignment]) -> tuple[str, ...]:
    """Those that any of the assignments trains, in the model's order."""
    own = {name for assignment in assignments for name in trained_names(anatomy, assignment)}
    return tuple(name for name, _ in anatomy.model.named_parameters() if name in own)


def pretrained(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """Their values before round 1, as fp32 copies."""
    return {name: model.get_parameter(name).detach().to(torch.float32, copy=True) for name in names}


def refuse_parts(rule: Aggregation, anatomy: Anatomy, assignments: Iterable[Assignment]) -> None:
    """Raises ConfigError for a rule that parts of a model cannot go with, ModelError for parts of none."""
    for bits in {a.weight_bits for a in assignments if a.weight_bits is not None}:
        if rule.moves_base:
            raise ConfigError(
                f"aggregation {rule.name!r} keeps changes of the whole frozen weights beside them, and a "
                f"client with {bits}-bit weights has rounded ones; choose another rule, or drop "
                "menu.weight_bits."
            )
    for width in {a.width for a in assignments if a.width is not None}:
        places_of(anatomy, width)
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
    if of_head is not None:
        for name in (name for name in adapter.head if name.endswith("weight")):
            own[head_name(name)] = of_head
            head[name] = part_of(head[name], of_head)
    weights = {name: part_of(state.adapter.weights[name], own.get(name)) for name in names}
    return replace(adapter, head=head, weights=weights, places=own)
