"""HetLoRA's rank tails (2401.06432): a client's last ranks, pulled to zero, and dropped once they yield.

The tail of r ranks are those from ``floor(gamma r)`` on, at least one and never all of several: published
re-implementations round, so that the tail of up to 50 ranks is empty and its norm of zero never falls.

Letters of shapes: C clients, R largest rank, I and O a linear's widths.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import Adapter, Factors


def kept_ranks(rank: int, gamma: float) -> int:
    """Ranks before the tail, ``max(1, floor(gamma rank))``: the whole of a rank of one."""
    return max(1, math.floor(gamma * rank))


def rank_after(sent: Adapter, trained: Adapter, gamma: float) -> int:
    """The rank that a client goes on with: without the tail if that shrank, and its largest rank if not.

    The tail's size is ``|B tail| |A tail|`` summed over the client's sites, before and after local
    training. One that was zero cannot shrink, so B's start at zero prunes nothing.
    """
    rank = max((factors.rank for factors in sent.factors.values()), default=0)
    shrank = _size(trained.factors, gamma) < _size(sent.factors, gamma)
    return kept_ranks(rank, gamma) if shrank else rank


def tail_masks(own: Sequence[Factors | None], gamma: float, num_ranks: int, device: str) -> Tensor:
    """1 where a client's tail at a site is, [C, R]; zeros for a client without the site or with one rank."""
    masks = torch.zeros(len(own), num_ranks, device=device)
    for client, factors in enumerate(own):
        if factors is not None:
            masks[client, kept_ranks(factors.rank, gamma) : factors.rank] = 1.0
    return masks


def pull_tails(
    masks: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    grads: Sequence[Tensor],
    frozen: Mapping[str, Tensor],
    members: Tensor | None,
    penalty: float,
) -> None:
    """Add to gradients, in place, that of ``penalty |B tail| |A tail|`` at every site.

    Args:
        masks: of all clients, by site (`tail_masks`).
        params: of the members by flat name, [M, ...] each, A's and B's among them.
        grads: theirs, in the same order.
        frozen: A of all clients, [C, R, I], at the sites that train B alone.
        members: positions among the clients, [M]; None is all.
        penalty: lambda.
    """
    grad_of = dict(zip(params, grads, strict=True))
    for site, of_all in masks.items():
        mask = of_all if members is None else of_all.index_select(0, members)
        left, right = f"{site}.lora_A", f"{site}.lora_B"
        a = params[left] if left in params else frozen[site]
        if left not in params and members is not None:
            a = a.index_select(0, members)
        _pull(a, params[right], mask, (grad_of.get(left), grad_of[right]), penalty)


def _pull(a: Tensor, b: Tensor, mask: Tensor, grads: tuple[Tensor | None, Tensor], penalty: float) -> None:
    """One site: a [M, R, I], b [M, O, R], mask [M, R]. The gradient of a norm at zero is zero."""
    tail_a, tail_b = a * mask[:, :, None], b * mask[:, None, :]
    norm_a, norm_b = (tail.flatten(1).norm(dim=1)[:, None, None] for tail in (tail_a, tail_b))
    sides = zip(grads, (tail_a, tail_b), (norm_a, norm_b), (norm_b, norm_a), strict=True)
    for grad, tail, norm, other in sides:
        if grad is not None:
            grad.add_(tail * torch.where(norm > 0, other / norm, 0.0), alpha=penalty)


def _size(factors: Mapping[str, Factors], gamma: float) -> float:
    total = 0.0
    for own in factors.values():
        first = kept_ranks(own.rank, gamma)
        total += float(own.a[first:].double().norm() * own.b[:, first:].double().norm())
    return total
