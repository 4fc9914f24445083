"""Transforms: what happens to one update before it is summed (`rule.Transform`)."""

import math
from dataclasses import dataclass, replace

import torch

from fedray.adapter import Adapter
from fedray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipByNorm:
    """Scales an update down to a Euclidean norm over all its tensors; smaller ones pass as they are.

    The norm is of the factors and the head as sent, not of the products, because that is what a
    bound on one client's influence (DP-FedAvg, 1710.06963) is stated for.

    Raises:
        ConfigError: at construction, unless ``max_norm`` is finite and above 0.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise ConfigError(f"clip_norm must be a finite number above 0, found {self.max_norm}.")

    def __call__(self, delta: Adapter, weight: float) -> Adapter:
        """The delta within the norm, whatever its weight."""
        squares = [float(tensor.double().square().sum()) for tensor in delta.tensors().values()]
        norm = math.sqrt(math.fsum(squares))
        return delta if norm <= self.max_norm else _scaled(delta, self.max_norm / norm)


def _scaled(delta: Adapter, factor: float) -> Adapter:
    def scaled(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.double() * factor).to(tensor.dtype)

    factors = {
        site: replace(f, a=scaled(f.a) if f.train_a else f.a, b=scaled(f.b))
        for site, f in delta.factors.items()
    }
    head, weights = ({n: scaled(t) for n, t in part.items()} for part in (delta.head, delta.weights))
    return replace(delta, factors=factors, head=head, weights=weights)
