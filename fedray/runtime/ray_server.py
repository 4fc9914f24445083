"""The server on Ray: its shards as actors in a placement group, or one actor that holds the whole backbone.

Shards work together or not at all: every call goes to all of them at once, and if one dies or gives up, the
group is ended and opened anew, and the round begins again from its start.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from fedray.errors import FedrayError, RuntimeFailure
from fedray.runtime.split import ServerSetting
from fedray.server.in_process import InProcessServer
from fedray.server.lockstep import Finished, SplitRound
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.server.sharded import ShardedServer
from fedray.training.boundary import PackMessages
from fedray.training.workshop import Blueprint, Stock, open_workshop

START_SECONDS = 300


class ServerLost(Exception):
    """A shard died or gave up; the round can be begun again with a new group."""


class _Shard:
    """A process of the ZeRO group; deepspeed is imported here alone, where it is needed."""

    def __init__(self, blueprint: ShardBlueprint, shard: int, num_shards: int) -> None:
        self._blueprint, self._place, self._num_shards = blueprint, shard, num_shards
        self._zero: Any = None

    def meeting_point(self) -> str:
        """HOST:PORT that is free on this node."""
        with socket.socket() as found:
            found.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{found.getsockname()[1]}"

    def join(self, meeting_point: str) -> bool:
        """Meet the others and load this shard's part."""
        from fedray.server.zero import ZeroShard

        self._zero = ZeroShard(self._blueprint, self._place, self._num_shards, meeting_point)
        return True

    def call(self, name: str, *args: Any) -> Any:
        """A method of `ZeroShard`."""
        return getattr(self._zero, name)(*args)


class _Whole:
    """The server's blocks in one process."""

    def __init__(self, blueprint: Blueprint, stock: Stock, server: ServerSetting) -> None:
        self._workshop = open_workshop(blueprint, stock)
        self._server = server
        self._half: InProcessServer | None = None

    def open(self, split: SplitRound) -> None:
        self._half = InProcessServer(
            self._workshop,
            split,
            num_shards=self._server.num_shards,
            attention=self._server.attention,
            recompute=self._server.recompute,
        )

    def call(self, name: str, *args: Any) -> Any:
        return getattr(self._half, name)(*args)


class WholeServer:
    """`fedray.server.lockstep.Server` over one actor."""

    def __init__(
        self, blueprint: Any, stock: Any, server: ServerSetting, num_cpus: float, num_gpus: float
    ) -> None:
        """Args: blueprint, stock: references; the rest is reserved and said."""
        remote = ray.remote(_Whole).options(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0)
        self._actor: Any = remote.remote(blueprint, stock, server)

    def open(self, split: SplitRound) -> None:
        """A new round."""
        _answer(self._actor.open.remote(split))

    def forward(self, messages: PackMessages) -> PackMessages:
        """See `fedray.server.lockstep.Server`."""
        return _answer(self._actor.call.remote("forward", messages))  # type: ignore[no-any-return]

    def backward(self, gradients: PackMessages) -> tuple[PackMessages, list[Tensor]]:
        """See `fedray.server.lockstep.Server`."""
        return _answer(self._actor.call.remote("backward", gradients))  # type: ignore[no-any-return]

    def settle(self, squares: Mapping[int, float]) -> None:
        """See `fedray.server.lockstep.Server`."""
        _answer(self._actor.call.remote("settle", squares))

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """See `fedray.server.lockstep.Server`."""
        _answer(self._actor.call.remote("settle_shared", gradients))

    def finish(self) -> Mapping[int, Finished]:
        """See `fedray.server.lockstep.Server`."""
        return _answer(self._actor.call.remote("finish"))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


class ZeroServer(ShardedServer):
    """The actors of a ZeRO group."""

    def __init__(self, blueprint: ShardBlueprint, num_shards: int) -> None:
        """Place the shards and let them meet. Raises RuntimeFailure if they cannot."""
        super().__init__(num_shards, blueprint.num_blocks)
        gpus = 1 if blueprint.device.startswith("cuda") else 0
        bundle = {"CPU": blueprint.threads, **({"GPU": gpus} if gpus else {})}
        self._group = placement_group([dict(bundle) for _ in range(num_shards)], strategy="PACK")
        self._actors: list[Any] = []
        if not self._group.wait(START_SECONDS):
            self.close()
            raise RuntimeFailure(
                f"Ray has no room for {num_shards} shards of the server with {bundle} each: the cluster has "
                f"{ray.cluster_resources()}; lower server.num_shards, or add nodes."
            )
        for shard in range(num_shards):
            options = ray.remote(_Shard).options(
                num_cpus=blueprint.threads,
                num_gpus=gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=shard
                ),
            )
            self._actors.append(options.remote(blueprint, shard, num_shards))
        try:
            where = ray.get(self._actors[0].meeting_point.remote(), timeout=START_SECONDS)
            _answers([actor.join.remote(where) for actor in self._actors], START_SECONDS)
        except BaseException:
            self.close()
            raise
        self._limit = blueprint.time_limit_seconds

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `ShardedServer.call`. Raises ServerLost, or FedrayError as a shard says."""
        calls = zip(self._actors, arguments, strict=True)
        # A collective gives up after its own limit; a shard that says nothing for twice as long is lost.
        return _answers([actor.call.remote(name, *own) for actor, own in calls], 2 * self._limit)

    def weight_bytes(self) -> list[tuple[int, int, int]]:
        """Of each shard: bytes of all weights, of its part of them, and of those gathered right now."""
        return self.call("weight_bytes", [()] * self._num_shards)

    def watch(self) -> None:
        """From now on note the most that is gathered at once; costs time."""
        self.call("watch", [()] * self._num_shards)

    def watched(self) -> list[tuple[int, int, int]]:
        """The same as `weight_bytes`, but the most that was gathered at once since `watch`."""
        return self.call("watched", [()] * self._num_shards)

    def close(self) -> None:
        """End the shards."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        remove_placement_group(self._group)


def _answer(reference: Any) -> Any:
    return _answers([reference], None)[0]


def _answers(references: Sequence[Any], seconds: float | None) -> list[Any]:
    """All answers, or at once what the first to fail said.

    Raises:
        ServerLost: a process died, gave up on a collective, or said nothing in time.
        FedrayError: one of ours.
    """
    waiting = list(references)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=seconds)
        if not ready:
            raise ServerLost(f"nothing was heard of {len(waiting)} shards for {seconds:g} s")
        try:
            ray.get(ready)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, FedrayError):
                raise cause from None
            raise ServerLost(str(error).strip().splitlines()[-1]) from error
    return ray.get(list(references))
