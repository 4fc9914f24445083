"""SGD and AdamW for a stack of clients: elementwise as torch's own, with a step count per client.

torch's optimizers count steps once for all; in a pack clients are at different steps, so AdamW's bias
correction needs the count of each. Every tensor is [C, ...], client by client.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from torch import Tensor

from fedray.errors import ConfigError
from fedray.exits import ramp

Optim = Literal["sgd", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptimizer:
    """How a client steps; names are Hugging Face's, the meaning torch's.

    Attributes:
        max_grad_norm: each client's own gradient is scaled down to this norm; None leaves it.
        head_learning_rate: of a classifier's head, which starts from nothing; None is the same.
        momentum: of SGD.
        proximal_mu: of FedProx (1812.06127): the loss has mu / 2 times the squared distance to what the round
            began from, so that a client stays near it; 0 is plain.
        tail_penalty: of HetLoRA (2401.06432): lambda times the sum over sites of the norms' product of the
            factors' last ranks is added to the loss; 0 is plain.
        tail_gamma: the last ranks of r are those from floor(gamma r) on.
        exit_distillation: of DepthFL: the weight with which the heads at a client's exits learn from each
            other; 0 is plain.
        exit_ramp_rounds: rounds over which that weight rises to its whole.
        perturbation_scale: how far a forward-only client looks to both sides of where it stands.
        control_variates: each gradient is corrected by SCAFFOLD's (1910.06378); takes plain SGD.
    """

    optim: Optim = "adamw"
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0
    proximal_mu: float = 0.0
    tail_penalty: float = 0.0
    tail_gamma: float = 0.99
    exit_distillation: float = 0.0
    exit_ramp_rounds: int = 300
    perturbation_scale: float = 1e-3
    control_variates: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot take effect. Raises ConfigError."""
        if self.optim == "adamw" and self.momentum:
            raise ConfigError(
                f"momentum = {self.momentum} has no effect with optim = adamw; drop it or choose sgd."
            )
        for name, rate in (
            ("learning_rate", self.learning_rate),
            ("head_learning_rate", self.head_learning_rate),
        ):
            if rate is not None and rate < 0:
                raise ConfigError(f"{name} must not be negative, found {rate}.")
        for name in ("proximal_mu", "tail_penalty", "exit_distillation"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, found {getattr(self, name)}.")

    def scaled(self, scale: float) -> "LocalOptimizer":
        """The same with every learning rate times ``scale``."""
        head = self.head_learning_rate
        return replace(
            self,
            learning_rate=self.learning_rate * scale,
            head_learning_rate=None if head is None else head * scale,
        )

    def distillation_in(self, round_number: int) -> float:
        """The weight of distillation between exits in a round, from 1."""
        return self.exit_distillation * ramp(round_number, self.exit_ramp_rounds)

    def rate(self, name: str) -> float:
        """The learning rate of a trained tensor, by its flat name (``head.weight``, ``SITE.lora_A``)."""
        own = self.head_learning_rate
        return self.learning_rate if own is None or not name.startswith("head.") else own

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

    def anchors(self, params: Sequence[Tensor]) -> list[Tensor]:
        """What these parameters are held near to: copies of them; none without a pull."""
        return [param.clone() for param in params] if self.proximal_mu else []

    def corrections(self, params: Sequence[Tensor]) -> list[Tensor]:
        """What is added to every gradient of these parameters, to be filled; none without variates."""
        return [torch.zeros_like(param) for param in params] if self.control_variates else []

    def correct(self, grads: Sequence[Tensor], corrections: Sequence[Tensor]) -> None:
        """Add them, in place; where there are none nothing."""
        for grad, correction in zip(grads, corrections, strict=False):
            grad.add_(correction)

    def pull(self, params: Sequence[Tensor], grads: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        """Add to gradients, in place, that of the distance to the anchors; where there are none nothing."""
        for param, grad, anchor in zip(params, grads, anchors, strict=False):
            grad.add_(param - anchor, alpha=self.proximal_mu)

    def step(
        self,
        params: Mapping[str, Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        steps: Tensor,
    ) -> None:
        """One step in place.

        Args:
            params: [C, ...] each, by flat name.
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
        self, params: Mapping[str, Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]]
    ) -> None:
        for index, ((name, param), grad) in enumerate(zip(params.items(), grads, strict=True)):
            decayed = grad.add(param, alpha=self.weight_decay) if self.weight_decay else grad
            if self.momentum:
                decayed = moments[0][index].mul_(self.momentum).add_(decayed)
            param.add_(decayed, alpha=-self.rate(name))

    def _adamw(
        self,
        params: Mapping[str, Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        steps: Tensor,
    ) -> None:
        first_correction = 1 - self.adam_beta1**steps
        second_correction = (1 - self.adam_beta2**steps).sqrt()
        for (name, param), grad, first, second in zip(params.items(), grads, *moments, strict=True):
            rate, per_client = self.rate(name), (-1,) + (1,) * (param.dim() - 1)
            param.mul_(1 - rate * self.weight_decay)
            first.lerp_(grad, 1 - self.adam_beta1)
            second.mul_(self.adam_beta2).addcmul_(grad, grad, value=1 - self.adam_beta2)
            size = second.sqrt().div_(second_correction.view(per_client)).add_(self.adam_epsilon)
            move = (first / first_correction.view(per_client)).div_(size)
            param.add_(move, alpha=-rate)


# Of what is run and never stepped: nothing is kept beside it.
STILL = LocalOptimizer(optim="sgd", learning_rate=0.0, max_grad_norm=None)


def schedule_scale(schedule: Schedule, round_number: int, num_rounds: int) -> float:
    """The part of the first round's learning rate that a round has; all its local steps share it.

    A schedule that restarted with every round, as a client's own would, never decays over a run.
    """
    done = (round_number - 1) / num_rounds
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case _:
            assert_never(schedule)


def squares_per_client(grads: Sequence[Tensor]) -> Tensor:
    """Each client's squared gradient norm over all its tensors, [C]; ``grads`` are [C, ...]."""
    return torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)


def clip_per_client(
    grads: Sequence[Tensor], max_norm: float, squares_elsewhere: Tensor | None = None
) -> None:
    """Scale each client's gradient, in place, to a norm of at most ``max_norm`` over all its tensors.

    As `torch.nn.utils.clip_grad_norm_` for every client by itself; ``grads`` are [C, ...]. Under a cut
    a part of each gradient lies elsewhere: its squared norm, [C], counts too.
    """
    square = squares_per_client(grads)
    if squares_elsewhere is not None:
        square = square + squares_elsewhere
    factor = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)  # [C]
    for grad in grads:
        grad.mul_(factor.view((-1,) + (1,) * (grad.dim() - 1)))
