"""SGD and AdamW for a stack of clients: elementwise as torch's own, with a step count per client.

torch's optimizers count steps once for all; in a pack clients are at different steps, so AdamW's bias
correction needs the count of each. Every tensor is [C, ...], client by client.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from fedray.errors import ConfigError

Optim = Literal["sgd", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptimizer:
    """How a client steps; names are Hugging Face's, the meaning torch's.

    Attributes:
        max_grad_norm: each client's own gradient is scaled down to this norm; None leaves it.
        momentum: of SGD.
    """

    optim: Optim = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot take effect. Raises ConfigError."""
        if self.optim == "adamw" and self.momentum:
            raise ConfigError(
                f"momentum = {self.momentum} has no effect with optim = adamw; drop it or choose sgd."
            )
        if self.learning_rate < 0:
            raise ConfigError(f"learning_rate must not be negative, found {self.learning_rate}.")

    def moments(self, params: Sequence[Tensor]) -> list[list[Tensor]]:
        """Zero state for these parameters: none, momentum, or the two moments of Adam."""
        match self.optim:
            case "sgd":
                count = 1 if self.momentum else 0
            case "adamw":
                count = 2
            case _:
                assert_never(self.optim)
        return [[torch.zeros_like(p) for p in params] for _ in range(count)]

    def step(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        steps: Tensor,
    ) -> None:
        """One step in place.

        Args:
            params: [C, ...] each.
            grads: [C, ...] each, already clipped.
            moments: as `LocalOptimizer.moments` made them.
            steps: of each client, this one counted, [C]; float.
        """
        match self.optim:
            case "sgd":
                self._sgd(params, grads, moments)
            case "adamw":
                self._adamw(params, grads, moments, steps)
            case _:
                assert_never(self.optim)

    def _sgd(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]]
    ) -> None:
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            decayed = grad.add(param, alpha=self.weight_decay) if self.weight_decay else grad
            if self.momentum:
                decayed = moments[0][index].mul_(self.momentum).add_(decayed)
            param.add_(decayed, alpha=-self.learning_rate)

    def _adamw(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        steps: Tensor,
    ) -> None:
        first_correction = 1 - self.adam_beta1**steps
        second_correction = (1 - self.adam_beta2**steps).sqrt()
        for param, grad, first, second in zip(params, grads, *moments, strict=True):
            per_client = (-1,) + (1,) * (param.dim() - 1)
            param.mul_(1 - self.learning_rate * self.weight_decay)
            first.lerp_(grad, 1 - self.adam_beta1)
            second.mul_(self.adam_beta2).addcmul_(grad, grad, value=1 - self.adam_beta2)
            size = second.sqrt().div_(second_correction.view(per_client)).add_(self.adam_epsilon)
            move = (first / first_correction.view(per_client)).div_(size)
            param.add_(move, alpha=-self.learning_rate)


def scheduled(learning_rate: float, schedule: Schedule, round_number: int, num_rounds: int) -> float:
    """The learning rate of a round, from 1: all local steps of a round share it.

    A schedule that restarted with every round, as a client's own would, never decays over a run.
    """
    done = (round_number - 1) / num_rounds
    match schedule:
        case "constant":
            return learning_rate
        case "linear":
            return learning_rate * (1 - done)
        case "cosine":
            return learning_rate * (1 + math.cos(math.pi * done)) / 2
        case _:
            assert_never(schedule)


def clip_per_client(grads: Sequence[Tensor], max_norm: float) -> None:
    """Scale each client's gradient, in place, to a norm of at most ``max_norm`` over all its tensors.

    As `torch.nn.utils.clip_grad_norm_` for every client by itself; ``grads`` are [C, ...].
    """
    square = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)
    factor = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)  # [C]
    for grad in grads:
        grad.mul_(factor.view((-1,) + (1,) * (grad.dim() - 1)))
