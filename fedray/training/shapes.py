"""Shapes and first values of what is trained: which sites, at which ranks, from which seed.

Letters of shapes: R rank, I and O a linear's widths, K labels, D hidden width.
"""

from collections.abc import Sequence
from math import prod
from typing import assert_never

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedray.adapter import Adapter, Factors
from fedray.aggregation.secure_sum import MASKED
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.model.anatomy import Anatomy
from fedray.model.wire import wire_bytes
from fedray.seeds import derive_seed
from fedray.trained import Prompt, Weights
from fedray.training.own_weights import largest_shapes, trained_shapes
from fedray.training.shares import head_prefixes


def site_ranks(anatomy: Anatomy, assignment: Assignment) -> dict[str, int]:
    """The rank of every site the assignment trains, in the model's order; frozen sites are left out.

    Under a cut these are the sites of both sides.
    """
    match assignment.adapter:
        case HeadOnly() | Weights() | Prompt():
            return {}
        case Lora(ranks=ranks, targets=targets):
            blocks = range(len(ranks)) if assignment.split else assignment.blocks
            return {
                site: rank
                for block, rank in zip(blocks, ranks, strict=True)
                if rank
                for site in anatomy.sites(block, targets)
            }
        case _:
            assert_never(assignment.adapter)


def empty_adapter(anatomy: Anatomy, assignment: Assignment, num_labels: int, device: str) -> Adapter:
    """An adapter of the assignment's shapes, not filled: sites with a rank, weights, a classifier's head."""
    factors = {}
    for site, rank in site_ranks(anatomy, assignment).items():
        assert isinstance(assignment.adapter, Lora)
        width_in, width_out = linear_widths(anatomy.backbone.get_submodule(site))
        factors[site] = Factors(
            a=torch.empty(rank, width_in, device=device),
            b=torch.empty(width_out, rank, device=device),
            scale=assignment.adapter.scale,
            train_a=assignment.adapter.train_a,
        )
    head = {}
    if num_labels:
        width = anatomy.model.config.hidden_size
        for prefix in head_prefixes(assignment):
            head[f"{prefix}weight"] = torch.empty(num_labels, width, device=device)
            head[f"{prefix}bias"] = torch.empty(num_labels, device=device)
    shapes = trained_shapes(anatomy, assignment)
    weights = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    return Adapter(factors=factors, head=head, weights=weights)


def initial_adapter(anatomy: Anatomy, menu: Sequence[Assignment], num_labels: int, run_seed: int) -> Adapter:
    """The global adapter before round 1: every site at the largest rank that the menu gives it.

    As PEFT starts LoRA: A uniform within 1 / sqrt(I), B zero, so that the first forward is the
    pretrained model's. The head starts as an ``nn.Linear``, and so do those at the menu's cuts and exits.
    """
    ranks: dict[str, int] = {}
    adapters: dict[str, Lora] = {}
    for assignment in menu:
        for site, rank in site_ranks(anatomy, assignment).items():
            assert isinstance(assignment.adapter, Lora)
            ranks[site] = max(rank, ranks.get(site, 0))
            adapters[site] = assignment.adapter
    random = torch.Generator().manual_seed(derive_seed(run_seed, "initial adapter"))
    factors = {}
    for site in sorted(ranks):
        width_in, width_out = linear_widths(anatomy.backbone.get_submodule(site))
        a = torch.empty(ranks[site], width_in).uniform_(generator=random).sub_(0.5).mul_(2 * width_in**-0.5)
        b, own = torch.zeros(width_out, ranks[site]), adapters[site]
        factors[site] = Factors(a=a, b=b, scale=own.scale, train_a=own.train_a)
    head = {}
    if num_labels:
        width = anatomy.model.config.hidden_size
        prefixes = {prefix for assignment in menu for prefix in head_prefixes(assignment)}
        head = {
            f"{prefix}{name}": torch.empty(shape).uniform_(-(width**-0.5), width**-0.5, generator=random)
            for prefix in ("", *sorted(prefixes - {""}, key=_natural))
            for name, shape in (("weight", (num_labels, width)), ("bias", (num_labels,)))
        }
    return Adapter(factors=factors, head=head)


def _natural(prefix: str) -> tuple[str, int]:
    """Heads at depths in the order of these: draws for one are the same whatever lies above."""
    kind, _, depth = prefix.rstrip(".").partition("_")
    return kind, int(depth)


def masked_bytes(anatomy: Anatomy, menu: Sequence[Assignment], num_labels: int) -> int:
    """What a masked update takes on the wire: a word for everything that anybody trains."""
    start = initial_adapter(anatomy, menu, num_labels, 0).tensors().values()
    length = sum(map(prod, largest_shapes(anatomy, menu).values())) + sum(tensor.numel() for tensor in start)
    return wire_bytes({MASKED: torch.empty(length, dtype=torch.int32, device="meta")})


def linear_widths(linear: nn.Module) -> tuple[int, int]:
    """Input and output width of an ``nn.Linear`` [O, I] or a ``Conv1D`` [I, O]."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    assert isinstance(linear, Conv1D)
    return linear.nx, linear.nf
