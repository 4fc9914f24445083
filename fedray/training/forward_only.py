"""Gradients without a backward pass: from losses at a little more and a little less along random directions.

Two forwards a direction, after SPSA as MeZO has it (2305.17333); clients that only infer are those of BAFFLE
(2301.12195), FwdLLM (2308.13894) and FedKSeed (2312.06353). Nothing is kept for a backward pass, so a client
needs the memory of inference, what it trains three times, and one direction. Under a cut the losses are the
server's, and directions those of what lies below.

With FedKSeed's few shared seeds (``up_codec`` ``seedsK``) a direction is one of K that everybody can draw;
what a client did is then told by a number for each, from which the server works out the update.

Letters of shapes: M clients that take a step.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedray.adapter import Adapter, from_tensors, leading
from fedray.codec_names import num_seeds
from fedray.model.counter import Term
from fedray.seeds import derive_seed, generator
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer

Shapes = Mapping[str, torch.Size]


class Observer(Protocol):
    """Who wants to know what is held; see `fedray.training.packed.Observer`."""

    def hold(self, tensors: Sequence[Tensor], term: Term) -> None:
        """These tensors are ``term``."""


class Directions:
    """Random directions of the clients of a pack, each drawn from a seed and its client's own shapes.

    What pads a stack, ranks and sites that a client does not have, has none: it stays zero.

    Attributes:
        count: tried in a step.
        scale: how far from where a client stands losses are looked at.
        told: of each client by how much it went along each shared direction, [K]; empty without any.
    """

    def __init__(
        self, jobs: Sequence[Job], own: Sequence[Adapter], optimizer: LocalOptimizer, device: str
    ) -> None:
        """Args: jobs: of a pack, forward-only; ``own``: what each trains; ``optimizer``: of their round."""
        assignment = jobs[0].assignment
        self.count, self.scale = assignment.perturbations, optimizer.perturbation_scale
        self._rate = optimizer.learning_rate
        self._jobs = jobs
        self._shapes = [_shapes(adapter) for adapter in own]
        self._steps = [0] * len(jobs)
        shared = num_seeds(assignment.up_codec)
        self.told = [] if shared is None else [torch.zeros(shared, device=device) for _ in jobs]

    def drawn(self, leaves: Mapping[str, Tensor], members: Sequence[int], number: int) -> dict[str, Tensor]:
        """Direction ``number`` of the members' next step, [M, ...] each, like their tensors ``leaves``."""
        device = next(iter(leaves.values())).device
        if len(self._jobs) == 1:  # without padding: a view of the draw
            alone = _drawn(self._seed(0, number), self._shapes[0], device)
            return {name: alone[name][None] for name in leaves}
        stacked = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for place, client in enumerate(members):
            for name, own in _drawn(self._seed(client, number), self._shapes[client], device).items():
                leading(stacked[name][place], own.shape).copy_(own)
        return stacked

    def along(self, members: Sequence[int], number: int, slopes: Tensor) -> None:
        """The members' losses rose so much along direction ``number``, [M], and they go against it."""
        for place, client in enumerate(members if self.told else ()):
            self.told[client][self._shared(client, number)] -= self._rate / self.count * slopes[place]

    def step(self, members: Sequence[int]) -> None:
        """The members have taken a step."""
        for client in members:
            self._steps[client] += 1

    def _seed(self, client: int, number: int) -> int:
        job = self._jobs[client]
        if self.told:
            return derive_seed(job.seed, "shared direction", self._shared(client, number))
        own = job.round, job.client_id, job.dispatch, self._steps[client], number
        return derive_seed(job.seed, "direction", *own)

    def _shared(self, client: int, number: int) -> int:
        """Which of the shared directions: drawn for each step."""
        job = self._jobs[client]
        own = job.round, job.client_id, job.dispatch, self._steps[client], number
        return int(generator(job.seed, "which direction", *own).integers(len(self.told[client])))


class Looking:
    """The looks of one step, ahead and behind along each direction, and the gradient that their losses make.

    Attributes:
        grads: of what is trained, [M, ...] each, in its order; whole after the last look.
        mean: of the members' losses that were looked at, [M]; likewise.
        done: whether all looks are over.
    """

    def __init__(
        self,
        directions: Directions,
        leaves: Mapping[str, Tensor],
        members: Sequence[int],
        observer: Observer | None = None,
    ) -> None:
        """Args: leaves: where the members stand, [M, ...] each; ``observer``: told of what is held."""
        self._directions, self._leaves, self._members = directions, leaves, members
        self._observer = observer
        self.grads = [torch.zeros_like(leaf) for leaf in leaves.values()]
        self.mean = torch.zeros(len(members), device=self.grads[0].device)
        self._look = 0
        self._drawn: dict[str, Tensor] = {}
        self._ahead: Tensor | None = None
        self._hold(self.grads)

    @property
    def done(self) -> bool:
        """See the class."""
        return self._look == 2 * self._directions.count

    @torch.no_grad()
    def place(self) -> dict[str, Tensor]:
        """Where the next look is, [M, ...] each."""
        number, behind = divmod(self._look, 2)
        if not behind:
            self._drawn = self._directions.drawn(self._leaves, self._members, number)
            self._hold(list(self._drawn.values()))
        at = -self._directions.scale if behind else self._directions.scale
        return {name: leaf + at * self._drawn[name] for name, leaf in self._leaves.items()}

    @torch.no_grad()
    def hear(self, losses: Tensor) -> None:
        """The members' losses at that place, [M]."""
        number, count, scale = self._look // 2, self._directions.count, self._directions.scale
        self._look += 1
        if self._ahead is None:
            self._ahead = losses
            return
        slope = (self._ahead - losses) / (2 * scale)  # [M]
        for grad, direction in zip(self.grads, self._drawn.values(), strict=True):
            grad.add_(direction * slope.view((-1,) + (1,) * (grad.dim() - 1)), alpha=1 / count)
        self._directions.along(self._members, number, slope)
        self.mean += (self._ahead + losses) / (2 * count)
        self._ahead = None
        if self.done:
            self._directions.step(self._members)

    def _hold(self, tensors: Sequence[Tensor]) -> None:
        if self._observer is not None:
            self._observer.hold(tensors, "gradients")


def went(job: Job, told: Tensor) -> Adapter:
    """The delta of who went so far along each shared direction, [K], as the server works it out."""
    like = job.sent.tensors()
    total = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    for place in told.nonzero().flatten().tolist():
        seed = derive_seed(job.seed, "shared direction", place)
        for name, own in _drawn(seed, _shapes(job.sent), torch.device("cpu")).items():
            total[name].add_(own, alpha=float(told[place]))
    return from_tensors(job.sent, total, delta=True)


def _shapes(sent: Adapter) -> Shapes:
    return {name: tensor.shape for name, tensor in sent.tensors().items()}


def _drawn(seed: int, shapes: Shapes, device: torch.device) -> dict[str, Tensor]:
    sizes = [shape.numel() for shape in shapes.values()]
    if device.type == "meta":
        flat = torch.empty(sum(sizes), device=device)
    else:
        # Drawn on the CPU: a GPU's generator gives other numbers.
        flat = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).to(device)
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}
