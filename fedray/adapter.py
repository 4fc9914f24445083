"""What is trained: LoRA factors and a head's tensors, as frozen values that every floor above may hold.

Letters of shapes: R rank, I a linear's input width, O its output width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# What the flat names of the model's own weights start with.
WEIGHTS = "weights."


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One linear's LoRA factors: the product is ``scale * b @ a``, [O, I]. The scale travels along.

    Without ``train_a`` A stays for the whole run what it was before round 1. It follows from the run's
    seed, so it is never sent, up or down; in a delta it is zeros that take no memory.
    """

    a: Tensor  # [R, I]
    b: Tensor  # [O, R]
    scale: float
    train_a: bool = True

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a.shape[0])


Place = tuple[Tensor | None, ...]
"""For each axis of a tensor its indices in the whole model's, without repeats; None is all of them."""


def part_of(whole: Tensor, place: Place | None) -> Tensor:
    """The entries of a tensor at a place, as a copy; the tensor itself where that is all of it."""
    for axis, own in enumerate(place or ()):
        if own is not None:
            whole = whole.index_select(axis, own.to(whole.device))
    return whole


def leading(whole: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of a tensor that starts where it starts, of a shape no larger in any axis; a view."""
    return whole[tuple(slice(length) for length in shape)]


def head_name(name: str) -> str:
    """The flat name of a head's tensor."""
    return f"head.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is trained.

    Attributes:
        factors: LoRA's, by site (a linear's module path).
        head: the head's tensors by name.
        weights: the model's own, by its names for them.
        places: of what is a part of the whole model's, where its entries lie in that: weights by the model's
            names, and what `head_name` says of the head's tensors.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is trained and crosses the wire, by a flat name; what `wire_bytes` counts."""
        flat = {f"{site}.lora_A": f.a for site, f in self.factors.items() if f.train_a}
        flat |= {f"{site}.lora_B": f.b for site, f in self.factors.items()}
        flat |= {f"{WEIGHTS}{name}": tensor for name, tensor in self.weights.items()}
        return flat | {f"head.{name}": tensor for name, tensor in self.head.items()}

    def frozen(self) -> dict[str, Tensor]:
        """The A's that nobody trains, by site."""
        return {site: f.a for site, f in self.factors.items() if not f.train_a}


def from_tensors(like: Adapter, tensors: Mapping[str, Tensor], *, delta: bool = False) -> Adapter:
    """The adapter of flat tensors: with the order and scales of ``like``, less what did not come.

    An A that nobody trains never comes: it is that of ``like``, or in a ``delta`` zeros.
    """
    return Adapter(
        factors={
            site: replace(f, a=_a_of(site, f, tensors, delta), b=tensors[f"{site}.lora_B"])
            for site, f in like.factors.items()
            if f"{site}.lora_B" in tensors
        },
        head={name: tensors[f"head.{name}"] for name in like.head if f"head.{name}" in tensors},
        weights={n: tensors[WEIGHTS + n] for n in like.weights if WEIGHTS + n in tensors},
        places=like.places,
    )


def _a_of(site: str, like: Factors, tensors: Mapping[str, Tensor], delta: bool) -> Tensor:
    if like.train_a:
        return tensors[f"{site}.lora_A"]
    return _no_change(like.a) if delta else like.a


def _no_change(a: Tensor) -> Tensor:
    return a.new_zeros(()).expand(a.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """The server's trained state between rounds.

    Attributes:
        adapter: at the largest rank any client may be given.
        base_delta: low-rank changes of the frozen linears that a rule (FLoRA) keeps unmerged.
        moments: of a server's optimizer, by kind and flat name (``first/SITE.lora_A``); float64.
        version: rounds aggregated so far.
    """

    adapter: Adapter
    base_delta: Mapping[str, Factors] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    version: int = 0


_AT = "at_"
_EXIT = "exit_"


def auxiliary(cut: int) -> str:
    """What the names of an auxiliary head at a cut start with, as ``"at_2.weight"``."""
    return f"{_AT}{cut}."


def exit_head(depth: int) -> str:
    """What the names of the head at an exit start with, as ``"exit_2.weight"``."""
    return f"{_EXIT}{depth}."


def is_of_an_exit(name: str) -> bool:
    """Whether a head's tensor is of the head at an exit."""
    return name.startswith(_EXIT)


def is_auxiliary(name: str) -> bool:
    """Whether a head's tensor is of an auxiliary head."""
    return name.startswith(_AT)


def _combine(left: Adapter, right: Adapter, sign: float) -> Adapter:
    factors = {
        site: replace(
            f,
            a=_combine_a(f, right.factors[site], sign),
            b=torch.add(f.b, right.factors[site].b, alpha=sign),
        )
        for site, f in left.factors.items()
    }
    head, weights = (
        {name: torch.add(tensor, theirs[name], alpha=sign) for name, tensor in ours.items()}
        for ours, theirs in ((left.head, right.head), (left.weights, right.weights))
    )
    return Adapter(factors=factors, head=head, weights=weights, places=left.places)


def _combine_a(left: Factors, right: Factors, sign: float) -> Tensor:
    if left.train_a:
        return torch.add(left.a, right.a, alpha=sign)
    return left.a if sign > 0 else _no_change(left.a)


def difference(trained: Adapter, sent: Adapter) -> Adapter:
    """Trained minus sent, tensor by tensor; both have the same sites and ranks."""
    return _combine(trained, sent, -1.0)


def applied(sent: Adapter, delta: Adapter) -> Adapter:
    """Sent plus delta: what the client ended with."""
    return _combine(sent, delta, 1.0)


def is_finite(adapter: Adapter) -> bool:
    """Whether every number is one."""
    return all(all_finite(tensor) for tensor in adapter.tensors().values())


def all_finite(tensor: Tensor) -> bool:
    """Whether every entry is a number: by the sum, and one by one only where large entries overflow it."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
