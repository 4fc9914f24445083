"""Gradients without a backward pass: from losses at a little more and a little less along random directions.

Two forwards a direction, after SPSA as MeZO has it (2305.17333); clients that only infer are those of BAFFLE
(2301.12195), FwdLLM (2308.13894) and FedKSeed (2312.06353). Nothing is kept for a backward pass, so a client
needs the memory of inference, what it trains three times, and one direction.

With FedKSeed's few shared seeds (``up_codec`` ``seedsK``) a direction is one of K that everybody can draw;
what a client did is then told by a number for each, from which the server works out the update.

Letters of shapes: M clients that take a step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import Adapter, from_tensors, leading
from fedray.codec_names import num_seeds
from fedray.seeds import derive_seed, generator
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer

Shapes = Mapping[str, torch.Size]


class Directions:
    """Random directions of the clients of a pack, each drawn from a seed and its client's own shapes.

    What pads a stack, ranks and sites that a client does not have, has none: it stays zero.

    Attributes:
        count: tried in a step.
        scale: how far from where a client stands losses are looked at.
        told: of each client by how much it went along each shared direction, [K]; empty without any.
    """

    def __init__(self, jobs: Sequence[Job], optimizer: LocalOptimizer, device: str) -> None:
        """Args: jobs: of a pack, forward-only; ``optimizer``: of their round."""
        assignment = jobs[0].assignment
        self.count, self.scale = assignment.perturbations, optimizer.perturbation_scale
        self._rate = optimizer.learning_rate
        self._jobs = jobs
        self._shapes = [_shapes(job.sent) for job in jobs]
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
