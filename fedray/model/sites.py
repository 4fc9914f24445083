"""LoRA sites: a frozen linear that adds one adapter per client of a pack to what it computes.

Letters of shapes: C clients of the pack, N rows (C times rows per client, client by client), T tokens,
I a linear's input width, O its output width, R the largest rank of the pack at this site.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedFactors:
    """LoRA factors of C clients, lower ranks padded with zeros to R."""

    a: Tensor  # [C, R, I]
    b: Tensor  # [C, O, R]
    scale: Tensor  # [C, 1, 1]


class LoraSite:
    """Takes the place of a frozen linear's ``forward``; the module tree and its names stay as they were.

    While `factors` is None it is the frozen linear. A padded rank adds exactly zero and gets exactly
    zero gradient, since each factor's gradient carries the other factor.
    """

    def __init__(self, linear: nn.Module) -> None:
        """Args: linear: an ``nn.Linear`` or GPT-2's ``Conv1D``; its weight is never written."""
        self.linear = linear
        self.frozen = linear.forward
        self.factors: StackedFactors | None = None
        linear.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        """[N, T, I] to [N, T, O]: the frozen product plus ``scale * (x a^T) b^T`` of each row's client."""
        frozen: Tensor = self.frozen(x)
        if self.factors is None:
            return frozen
        a, b, scale = self.factors.a.to(x.dtype), self.factors.b.to(x.dtype), self.factors.scale.to(x.dtype)
        clients = a.shape[0]
        inner = torch.bmm(x.reshape(clients, -1, x.shape[-1]), a.transpose(1, 2)) * scale
        return torch.baddbmm(frozen.view(clients, -1, b.shape[1]), inner, b.transpose(1, 2)).view(
            frozen.shape
        )


Sites = Mapping[str, LoraSite]


def attach_sites(anatomy: Anatomy, targets: tuple[str, ...]) -> dict[str, LoraSite]:
    """A site on every linear whose module name ends in one of ``targets``, by its module path.

    Calling it again finds the sites that are there. Raises ModelError where a target names no linear.
    """
    sites: dict[str, LoraSite] = {}
    found: set[str] = set()
    names: set[str] = set()
    for block in range(anatomy.num_blocks):
        for path, linear in anatomy.linears(block).items():
            name = path.rpartition(".")[2]
            names.add(name)
            if name in targets:
                found.add(name)
                present = linear.forward
                sites[path] = present if isinstance(present, LoraSite) else LoraSite(linear)
    if missing := set(targets) - found:
        raise ModelError(
            f"target_modules {sorted(missing)} name no linear of {anatomy.model.config.model_type}'s blocks, "
            f"which have {sorted(names)}."
        )
    return sites


@contextmanager
def installed(sites: Sites, factors: Mapping[str, StackedFactors]) -> Iterator[None]:
    """The factors at their sites for the length of a ``with``; every other site is the frozen linear."""
    before = {path: site.factors for path, site in sites.items()}
    for path, site in sites.items():
        site.factors = factors.get(path)
    try:
        yield
    finally:
        for path, site in sites.items():
            site.factors = before[path]


@contextmanager
def shifted(sites: Sites, deltas: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The sites' weights moved by low-rank deltas ``b @ a`` for the length of a ``with``.

    A new weight takes the old one's place; the old one, which other processes may share, is not written.
    """
    kept: dict[str, nn.Parameter] = {}
    for path, (b, a) in deltas.items():
        linear = sites[path].linear
        kept[path] = cast(nn.Parameter, linear.weight)
        move = b @ a if isinstance(linear, nn.Linear) else (b @ a).T  # Conv1D keeps [I, O]
        moved = kept[path].float() + move
        linear.weight = nn.Parameter(moved.to(kept[path].dtype), requires_grad=False)
    try:
        yield
    finally:
        for path, weight in kept.items():
            sites[path].linear.weight = weight
