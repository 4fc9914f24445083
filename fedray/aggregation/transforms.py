"""Transforms: what happens to one update before it is summed (`rule.Transform`), and noise."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from fedray.adapter import Adapter, from_tensors
from fedray.errors import ConfigError
from fedray.mechanism import Mechanism


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
        norm = norm_of(delta.tensors())
        return delta if norm <= self.max_norm else scaled_by(delta, self.max_norm / norm)


def norm_of(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean norm over all of them together."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def clipped(tensors: Mapping[str, torch.Tensor], max_norm: float) -> dict[str, torch.Tensor]:
    """The same in float64 within a norm, which rounding to fewer digits could pass again."""
    norm = norm_of(tensors)
    factor = 1.0 if norm <= max_norm else max_norm / norm
    return {name: tensor.double() * factor for name, tensor in tensors.items()}


def noise_like(tensor: torch.Tensor, deviation: float, seed: int) -> torch.Tensor:
    """Gaussian noise of a tensor's shape, float64, drawn on the CPU from a seed of its own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (deviation * drawn).to(tensor.device)


def noised(delta: Adapter, mechanism: Mechanism, seed_of: Callable[[str], int]) -> Adapter:
    """An update within the norm and with noise on every entry, in its own dtypes: local privacy.

    Args:
        delta: of one client.
        mechanism: C and z.
        seed_of: a tensor's seed, by flat name.
    """
    own, deviation = delta.tensors(), mechanism.noise_deviation
    if not deviation and norm_of(own) <= mechanism.clip_norm:
        return delta
    cut = clipped(own, mechanism.clip_norm)
    sent = {
        name: tensor + noise_like(tensor, deviation, seed_of(name)) if deviation else tensor
        for name, tensor in cut.items()
    }
    return from_tensors(delta, {name: t.to(own[name].dtype) for name, t in sent.items()}, delta=True)


def scaled_by(delta: Adapter, factor: float) -> Adapter:
    """An update times a number, in its own dtypes."""

    def scaled(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.double() * factor).to(tensor.dtype)

    factors = {
        site: replace(f, a=scaled(f.a) if f.train_a else f.a, b=scaled(f.b))
        for site, f in delta.factors.items()
    }
    head, weights = ({n: scaled(t) for n, t in part.items()} for part in (delta.head, delta.weights))
    return replace(delta, factors=factors, head=head, weights=weights)
