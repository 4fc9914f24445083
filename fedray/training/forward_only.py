"""Gradients without a backward pass: from losses at a little more and a little less along random directions.

Two forwards a direction, after SPSA as MeZO has it (2305.17333); clients that only infer are those of BAFFLE
(2301.12195), FwdLLM (2308.13894) and FedKSeed (2312.06353). Nothing is kept for a backward pass, so a client
needs the memory of inference, what it trains three times, and one direction.

Letters of shapes: M clients that take a step.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedray.adapter import Adapter
from fedray.seeds import derive_seed


class Directions:
    """Random directions of the clients of a pack, each drawn from its client's own seed and shapes.

    What pads a stack, ranks and sites that a client does not have, has none: it stays zero.
    """

    def __init__(self, seeds: Sequence[int], sent: Sequence[Adapter], count: int, scale: float) -> None:
        """Args: seeds: of the clients' rounds; ``sent``: for their shapes; ``count``: tried a step.

        ``scale`` is how far from where a client stands losses are looked at.
        """
        self._seeds = seeds
        self._shapes = [{name: t.shape for name, t in adapter.tensors().items()} for adapter in sent]
        self.count, self.scale = count, scale
        self._steps = [0] * len(seeds)

    def drawn(self, leaves: Mapping[str, Tensor], members: Sequence[int], number: int) -> dict[str, Tensor]:
        """Direction ``number`` of the members' next step, [M, ...] each, like their tensors ``leaves``."""
        alone = len(self._seeds) == 1  # without padding: a view of the draw
        stacked = {} if alone else {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for place, client in enumerate(members):
            for name, own in self._of(client, number, next(iter(leaves.values())).device).items():
                if alone:
                    stacked[name] = own[None]
                else:
                    stacked[name][place][tuple(slice(size) for size in own.shape)] = own
        return {name: stacked[name] for name in leaves}

    def step(self, members: Sequence[int]) -> None:
        """The members have taken a step."""
        for client in members:
            self._steps[client] += 1

    def _of(self, client: int, number: int, device: torch.device) -> dict[str, Tensor]:
        shapes = self._shapes[client]
        sizes = [shape.numel() for shape in shapes.values()]
        if device.type == "meta":
            flat = torch.empty(sum(sizes), device=device)
        else:
            seed = derive_seed(self._seeds[client], "direction", self._steps[client], number)
            # Drawn on the CPU: a GPU's generator gives other numbers.
            flat = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).to(device)
        parts = zip(shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}
