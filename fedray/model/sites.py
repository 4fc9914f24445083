"""LoRA sites: a frozen linear that adds one adapter per client of a pack to what it computes.

Letters of shapes: C clients of the pack, N rows (C times rows per client, client by client), T tokens,
X real tokens end to end, I a linear's input width, O its output width, R the largest rank of the pack at
this site.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedray.adapter import WEIGHTS, Factors
from fedray.errors import ModelError
from fedray.model.added import PROMPT
from fedray.model.anatomy import Anatomy
from fedray.model.layout import current_layout
from fedray.model.prefix import PREFIX, Prefix
from fedray.model.weight_sites import WeightSite, attach_weight_sites, weights_installed


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedFactors:
    """LoRA factors of C clients, lower ranks padded with zeros to R."""

    a: Tensor  # [C, R, I]
    b: Tensor  # [C, O, R]
    scale: Tensor  # [C, 1, 1]


def alone(factors: Factors, device: str | torch.device = "cpu") -> StackedFactors:
    """The stack of one client's factors."""
    return StackedFactors(
        a=factors.a[None].to(device),
        b=factors.b[None].to(device),
        scale=torch.full((1, 1, 1), factors.scale, device=device),
    )


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
        self.change: tuple[Tensor, Tensor] | None = None  # b [O, R] and a [R, I], for everybody alike
        linear.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        """[N, T, I] to [N, T, O]: the frozen product plus ``scale * (x a^T) b^T`` of each row's client.

        Under a `Layout` [1, X, I] to [1, X, O].
        """
        frozen: Tensor = self.frozen(x)
        if self.change is not None:
            change_b, change_a = self.change
            frozen = frozen + (x @ change_a.to(x.dtype).T) @ change_b.to(x.dtype).T
        if self.factors is None:
            return frozen
        a, b, scale = self.factors.a.to(x.dtype), self.factors.b.to(x.dtype), self.factors.scale.to(x.dtype)
        layout = current_layout()
        if layout is not None:
            return _in_turn(frozen.squeeze(0), x.squeeze(0), a * scale, b, layout.counts).unsqueeze(0)
        clients = a.shape[0]
        inner = torch.bmm(x.reshape(clients, -1, x.shape[-1]), a.transpose(1, 2)) * scale
        return torch.baddbmm(frozen.view(clients, -1, b.shape[1]), inner, b.transpose(1, 2)).view(
            frozen.shape
        )


class _InTurn(torch.autograd.Function):
    """Clients with unlike numbers of tokens, one product after the other: a stacked one would need filling.

    Tokens [X, ...] stand client by client, ``counts`` says how many each has; a is [C, R, I], b [C, O, R].
    """

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, x: Tensor, a: Tensor, b: Tensor, counts: tuple[int, ...]) -> Tensor:
        inner, out = x.new_empty(len(x), a.shape[1]), torch.empty_like(frozen)
        parts = zip(
            x.split(counts), inner.split(counts), frozen.split(counts), out.split(counts), strict=True
        )
        for client, (own, middle, base, answer) in enumerate(parts):
            torch.mm(own, a[client].T, out=middle)
            torch.addmm(base, middle, b[client].T, out=answer)
        ctx.save_for_backward(x, inner, a, b)
        ctx.counts = counts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, inner, a, b = ctx.saved_tensors
        grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        ends = list(itertools.accumulate(ctx.counts))
        for client, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            own = grad[first:end]
            middle = own @ b[client]
            torch.mm(own.T, inner[first:end], out=grad_b[client])
            torch.mm(middle.T, x[first:end], out=grad_a[client])
            if grad_x is not None:
                torch.mm(middle, a[client], out=grad_x[first:end])
        return grad if ctx.needs_input_grad[0] else None, grad_x, grad_a, grad_b, None


def _in_turn(frozen: Tensor, x: Tensor, a: Tensor, b: Tensor, counts: tuple[int, ...]) -> Tensor:
    return cast(Tensor, _InTurn.apply(frozen, x, a, b, counts))  # type: ignore[no-untyped-call]


Sites = Mapping[str, LoraSite]
Installed = Mapping[str, StackedFactors | Tensor]
"""What stands at sites: factors by a linear's path, and the model's own weights [C, ...] by flat name."""


def prompt_rows(factors: Installed, num_rows: int) -> Tensor | None:
    """The clients' prompts before each of their rows, [N, P, D]; None where none is installed."""
    prompt = factors.get(WEIGHTS + PROMPT)
    if not isinstance(prompt, Tensor):
        return None
    return prompt.repeat_interleave(num_rows // len(prompt), dim=0)


def prefix_of(factors: Installed, num_rows: int) -> Prefix | None:
    """The clients' prefixes, before each of so many rows; None where none is installed."""
    rows = {
        int(name.removeprefix(WEIGHTS + PREFIX)): own.repeat_interleave(num_rows // len(own), dim=0)
        for name, own in factors.items()
        if name.startswith(WEIGHTS + PREFIX) and isinstance(own, Tensor)
    }
    return Prefix(rows) if rows else None


def own_weights_installed(
    anatomy: Anatomy, factors: Installed, rows_each: int
) -> AbstractContextManager[None]:
    """The clients' own weights at their modules; sites come when they are first asked for."""
    weights = {n.removeprefix(WEIGHTS): t for n, t in factors.items() if isinstance(t, Tensor)}
    sites = attach_weight_sites(anatomy, weights) if weights else ()
    return weights_installed(sites, weights, rows_each)


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
                present: Any = linear.forward
                if isinstance(present, WeightSite):
                    present = present.frozen
                sites[path] = present if isinstance(present, LoraSite) else LoraSite(linear)
    if missing := set(targets) - found:
        raise ModelError(
            f"target_modules {sorted(missing)} name no linear of {anatomy.model.config.model_type}'s blocks, "
            f"which have {sorted(names)}."
        )
    return sites


@contextmanager
def installed(sites: Sites, factors: Installed) -> Iterator[None]:
    """The factors at their sites for the length of a ``with``; every other site is the frozen linear."""
    before = {path: site.factors for path, site in sites.items()}
    for path, site in sites.items():
        own = factors.get(path)
        site.factors = own if isinstance(own, StackedFactors) else None
    try:
        yield
    finally:
        for path, site in sites.items():
            site.factors = before[path]


@contextmanager
def changed(sites: Sites, deltas: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Low-rank deltas ``b @ a`` beside the sites' weights for the length of a ``with``; none is moved."""
    for path, delta in deltas.items():
        sites[path].change = delta
    try:
        yield
    finally:
        for path in deltas:
            sites[path].change = None


def moved_weights(sites: Sites, deltas: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, nn.Parameter]:
    """The sites' weights moved by low-rank deltas ``b @ a``, as new ones: others may share the old."""
    moved = {}
    for path, (b, a) in deltas.items():
        linear = sites[path].linear
        weight = cast(nn.Parameter, linear.weight)
        move = b @ a if isinstance(linear, nn.Linear) else (b @ a).T  # Conv1D keeps [I, O]
        moved[path] = nn.Parameter((weight.float() + move).to(weight.dtype), requires_grad=False)
    return moved


@contextmanager
def swapped(sites: Sites, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """These weights in the place of the sites' own for the length of a ``with``."""
    kept = {path: cast(nn.Parameter, sites[path].linear.weight) for path in weights}
    for path, weight in weights.items():
        sites[path].linear.weight = weight
    try:
        yield
    finally:
        for path, weight in kept.items():
            sites[path].linear.weight = weight
