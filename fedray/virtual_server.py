"""The declared server above the cuts, as a virtual clock sees it: what a sweep takes, and who has room.

It gathers its sharded blocks once up and once down for everybody aboard, so a sweep takes the longer of its
riders' arithmetic and of gathering the blocks from the lowest cut aboard to the top. Black-box clients, for
whom nothing comes down again, go up before the others and by themselves, so that nothing is kept of them.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedray.cost import Floats, Ints, ServerShare
from fedray.errors import ConfigError
from fedray.units import show_bytes

ServerMode = Literal["replica", "shared"]
SweepOrder = Literal["sweep", "queue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """What a configuration declares of the server, and how large its blocks are.

    Attributes:
        num_shards: that the frozen blocks are divided among.
        flops_per_s: of one shard; ``memory_bytes``, ``watts`` (while it sweeps) too.
        interconnect_bps: bits a second that reach one shard from the others.
        min_riders: with so many aboard a sweep leaves at once, and with as many as are left in the round.
        window_seconds: it leaves with fewer so long after the first of them boarded.
        mode: ``replica`` holds adapters for each client (SplitFed v1, 2004.12088), ``shared`` one (v2).
        order: ``sweep`` takes all who wait, ``queue`` one after the other as they came.
        block_bytes: [blocks], of each frozen block as the server holds it; the head's count with the last.

    Raises:
        ConfigError: if the blocks alone leave no memory.
    """

    num_shards: int
    flops_per_s: float
    memory_bytes: int
    interconnect_bps: float
    watts: float
    block_bytes: tuple[int, ...]
    min_riders: int = 1
    window_seconds: float = 0.0
    mode: ServerMode = "replica"
    order: SweepOrder = "sweep"

    def __post_init__(self) -> None:
        if self.room_bytes > 0:
            return
        shards = f"{self.num_shards} shard{'s' if self.num_shards > 1 else ''}"
        raise ConfigError(
            f"The server's blocks take {show_bytes(sum(self.block_bytes))} and leave no memory for clients: "
            f"{shards} of {show_bytes(self.memory_bytes)}; raise server.num_shards or server.memory_bytes."
        )

    @property
    def room_bytes(self) -> int:
        """Memory of all shards that their blocks leave."""
        return self.num_shards * self.memory_bytes - sum(self.block_bytes)

    @property
    def all_watts(self) -> float:
        """Of all shards, while it sweeps."""
        return self.num_shards * self.watts

    def way_seconds(self, flops: float, lowest_block: int) -> float:
        """What one way through the blocks takes, up or down, with so much arithmetic on it."""
        return max(flops / self._all_flops_per_s, self._gather_seconds(lowest_block))

    def ride_seconds(self, share: ServerShare, flops: Ints) -> Floats:
        """What a sweep for one client alone takes until it has its answer, [clients].

        Args:
            share: that the clients have of the server.
            flops: of a step of each, [clients].
        """
        num_ways = 2 if share.comes_down else 1
        computing = flops / num_ways / self._all_flops_per_s
        return num_ways * np.maximum(computing, self._gather_seconds(share.first_block))

    @property
    def _all_flops_per_s(self) -> float:
        return self.num_shards * self.flops_per_s

    def _gather_seconds(self, lowest_block: int) -> float:
        # Each shard has its own part already; the others' come for each way.
        elsewhere = (self.num_shards - 1) / self.num_shards
        gathered_bytes = elsewhere * sum(self.block_bytes[lowest_block:])
        return gathered_bytes * 8 / self.interconnect_bps

    def needed_bytes(self, share: ServerShare) -> int:
        """What a client takes of the room if it is alone."""
        return share.activation_bytes + share.adapter_bytes

    def left_bytes(self, aboard: Sequence[ServerShare]) -> int:
        """The most that one more may take of the room if it comes while these are on their way."""
        adapters, activations = self._taken(aboard)
        # In a queue the newcomer's activations are not alive beside theirs.
        return self.room_bytes - adapters - (activations if self.order == "sweep" else 0)

    def refused(
        self, shares: Sequence[ServerShare | None], aboard: Sequence[ServerShare] = ()
    ) -> dict[int, str]:
        """Who has no room beside those before, by position, and why; None has no cut and needs none.

        Everybody stays for the whole trip. A replica's adapters add up, of shared ones there is one as
        large as the largest. In a queue one client's activations are alive at a time.

        Args:
            shares: of those who come, in order.
            aboard: of those on their way already.
        """
        join_adapters, join_activations = self._joins()
        adapters, activations = self._taken(aboard)
        reasons = {}
        for position, share in enumerate(shares):
            if share is None:
                continue
            more_adapters = join_adapters(adapters, share.adapter_bytes)
            more_activations = join_activations(activations, share.activation_bytes)
            if more_adapters + more_activations <= self.room_bytes:
                adapters, activations = more_adapters, more_activations
                continue
            needed, taken = show_bytes(self.needed_bytes(share)), show_bytes(adapters + activations)
            reasons[position] = (
                f"needs {needed} on the server, which has {show_bytes(self.room_bytes)} beside its blocks, "
                f"{taken} of them taken"
            )
        return reasons

    def _taken(self, aboard: Sequence[ServerShare]) -> tuple[int, int]:
        """By adapters, and by activations."""
        join_adapters, join_activations = self._joins()
        adapters = activations = 0
        for share in aboard:
            adapters = join_adapters(adapters, share.adapter_bytes)
            activations = join_activations(activations, share.activation_bytes)
        return adapters, activations

    def _joins(self) -> tuple[Callable[[int, int], int], Callable[[int, int], int]]:
        """How one more client's adapters, and activations, go with the others'."""
        return operator.add if self.mode == "replica" else max, operator.add if self.order == "sweep" else max
