"""The server's shards as one server: packs are shared out, calls go to all, answers come together.

How a call reaches a shard is for who places them: actors of a cluster, or processes beside each other.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedray.assignment import Assignment
from fedray.server.aboard import Lowest
from fedray.server.in_process import shard_of_packs, summed
from fedray.server.lockstep import Finished, SplitRound
from fedray.server.passing import divided
from fedray.training.boundary import PackMessages
from fedray.training.parted import Span


class ShardedServer(ABC):
    """`fedray.server.lockstep.Server` over the shards of a ZeRO group."""

    def __init__(self, num_shards: int, num_blocks: int) -> None:
        """Args: num_shards: of the group; num_blocks: of the model."""
        self._num_shards, self._num_blocks = num_shards, num_blocks
        self._shard_of: dict[int, int] = {}
        self._assignments: dict[int, Assignment] = {}

    @abstractmethod
    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call this method of all shards at once, each with its own arguments; answers in their order."""

    def open(self, split: SplitRound) -> None:
        """A new round; see `fedray.server.server_half.ServerHalf.open`."""
        packs = split.packs
        self._shard_of = shard_of_packs(packs, self._num_blocks, self._num_shards)
        self._assignments = {place: jobs[0].assignment for place, jobs in packs.items()}
        scale = next(iter(packs.values()))[0].learning_rate_scale
        self.call("open", [(replace(split, packs=own), scale) for own in self._shared_out(packs)])

    def forward(self, messages: PackMessages) -> PackMessages:
        """See `fedray.server.lockstep.Server`."""
        lowest = Lowest.of(self._assignments[place] for place in messages)
        answers = self.call("forward", [(own, lowest) for own in self._shared_out(messages)])
        return {place: sent for answer in answers for place, sent in answer.items()}

    def backward(self, gradients: PackMessages) -> tuple[PackMessages, list[Tensor]]:
        """See `fedray.server.lockstep.Server`."""
        answers = self.call("backward", [(own,) for own in self._shared_out(gradients)])
        down = {place: sent for answer, _ in answers for place, sent in answer.items()}
        return down, summed(shared for _, shared in answers)

    def settle(self, squares: Mapping[int, float]) -> None:
        """See `fedray.server.lockstep.Server`."""
        self.call("settle", [(squares,)] * self._num_shards)

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """See `fedray.server.lockstep.Server`."""
        self.call("settle_shared", [(gradients,)] * self._num_shards)

    def passed(self, span: Span, hidden: Tensor, mask: Tensor) -> Tensor:
        """A pass that trains nothing; see `fedray.training.parted.Middle`."""
        parts = divided(hidden.cpu(), mask.cpu(), self._num_shards)
        answers = self.call("passed", [(span, part) for part in parts])
        return torch.cat([rows for rows in answers if rows is not None]).to(hidden.device)

    def finish(self) -> Mapping[int, Finished]:
        """See `fedray.server.lockstep.Server`."""
        answers = self.call("finish", [()] * self._num_shards)
        return {place: found for answer in answers for place, found in answer.items()}

    def _shared_out(self, by_pack: Mapping[int, Any]) -> list[dict[int, Any]]:
        return [
            {place: value for place, value in by_pack.items() if self._shard_of[place] == shard}
            for shard in range(self._num_shards)
        ]
