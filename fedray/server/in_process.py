"""The server in this process: the same riders, shard by shard, as on ZeRO shards, over whole blocks.

It defines what is correct; the numbers of a run depend on ``num_shards``, which packs sweep together, and
not on where the shards are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedray.assignment import Attention, Dtype
from fedray.server.aboard import Lowest
from fedray.server.lockstep import Finished, SplitRound
from fedray.server.server_half import ServerHalf
from fedray.server.sweep import Sweep
from fedray.training.boundary import Messages, PackMessages
from fedray.training.job import Job
from fedray.training.train import Workshop


def shard_of_packs(packs: Mapping[int, Sequence[Job]], num_blocks: int, num_shards: int) -> dict[int, int]:
    """Which shard serves each pack: the heaviest first, each to the shard with least to do so far.

    From the jobs alone: tokens through blocks, clients times rows times tokens times blocks.
    """

    def work(place: int) -> int:
        jobs = packs[place]
        a = jobs[0].assignment
        return sum(job.tokens * a.batch_size for job in jobs) * len(a.server_blocks(num_blocks))

    loads, shards = [0] * num_shards, {}
    for place in sorted(packs, key=lambda place: (-work(place), place)):
        shards[place] = loads.index(min(loads))
        loads[shards[place]] += work(place)
    return shards


def summed(parts: Iterable[list[Tensor]]) -> list[Tensor]:
    """Gradients of the shared adapter over shards, in their order; a shard with nobody aboard has none."""
    sums: list[Tensor] = []
    for part in parts:
        sums = [a + b for a, b in zip(sums, part, strict=True)] if sums and part else sums or part
    return sums


class InProcessServer:
    """All shards, one after the other, and one backbone for each dtype."""

    def __init__(
        self,
        workshop: Workshop,
        split: SplitRound,
        *,
        num_shards: int,
        attention: Attention,
        recompute: bool,
    ) -> None:
        """Open a round.

        Args:
            workshop: of this process.
            split: the round under a cut.
            num_shards: sweeps side by side.
            attention: the server's kernel.
            recompute: activation checkpointing in the sweep.
        """
        packs = split.packs
        num_blocks = next(iter(workshop.backbones.values())).anatomy.num_blocks
        shards = shard_of_packs(packs, num_blocks, num_shards)
        self._packs = dict(packs)
        self._key = {place: (shard, packs[place][0].assignment.dtype) for place, shard in shards.items()}
        self._halves: dict[tuple[int, Dtype], ServerHalf] = {}
        self._under_way: list[tuple[int, Dtype]] = []
        for key in sorted(set(self._key.values())):
            backbone = workshop.backbones[key[1]]
            walk = Sweep(backbone, workshop.task, attention, recompute=recompute, ghost=False)
            half = ServerHalf(backbone, walk, workshop.optimizer, workshop.device, all_backward=False)
            own = {place: jobs for place, jobs in packs.items() if self._key[place] == key}
            scale = next(iter(own.values()))[0].learning_rate_scale
            half.open(replace(split, packs=own), scale)
            self._halves[key] = half

    def forward(self, messages: PackMessages) -> PackMessages:
        """See `fedray.server.lockstep.Server`."""
        out: dict[int, Messages] = {}
        self._under_way = []
        for key, half in self._halves.items():
            own = {place: sent for place, sent in messages.items() if self._key[place] == key}
            if own:
                self._under_way.append(key)
                out |= half.forward(own, Lowest.of(self._packs[place][0].assignment for place in own))
        return out

    def backward(self, gradients: PackMessages) -> tuple[PackMessages, list[Tensor]]:
        """See `fedray.server.lockstep.Server`."""
        down: dict[int, Messages] = {}
        parts = []
        for key in self._under_way:
            own = {place: sent for place, sent in gradients.items() if self._key[place] == key}
            answer, shared = self._halves[key].backward(own)
            down |= answer
            parts.append(shared)
        return down, summed(parts)

    def settle(self, squares: Mapping[int, float]) -> None:
        """See `fedray.server.lockstep.Server`."""
        for key in self._under_way:
            self._halves[key].settle(squares)

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """See `fedray.server.lockstep.Server`."""
        for half in self._halves.values():
            half.settle_shared(gradients)

    def finish(self) -> Mapping[int, Finished]:
        """See `fedray.server.lockstep.Server`."""
        return {place: found for half in self._halves.values() for place, found in half.finish().items()}
