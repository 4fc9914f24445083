"""Groups of ZeRO shards as processes, forked from one that has imported DeepSpeed already."""

import multiprocessing
import pickle
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from fedray.server.shard_blueprint import ShardBlueprint
from fedray.server.sharded import ShardedServer

SECONDS = 120


class Group:
    """A process for each shard; it may hold parts of several models, by name."""

    def __init__(self, num_shards: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fedray.server.zero"])
        self.num_shards = num_shards
        self.pipes: list[Connection] = []
        self.processes = []
        for shard in range(num_shards):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, shard, num_shards), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def load(self, model: str, blueprint: ShardBlueprint) -> None:
        """Give each shard its part of a model."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{found.getsockname()[1]}"
        self.ask(model, "load", [(blueprint, where)] * self.num_shards)

    def ask(self, model: str, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """All answers, or at once the error of the first shard that fails."""
        for pipe, own in zip(self.pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((model, name, own)))
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self.pipes):
            ready = wait([pipe for pipe in self.pipes if pipe not in answers], SECONDS)
            assert ready, f"a shard said nothing of {name} for {SECONDS} s"
            for pipe in ready:
                good, answers[pipe] = pickle.loads(pipe.recv_bytes())
                if not good:
                    raise answers[pipe]
        return [answers[pipe] for pipe in self.pipes]

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.kill()
            process.join()


class Shards(ShardedServer):
    """A group of shards as the server of one model."""

    def __init__(self, group: Group, model: str, num_blocks: int) -> None:
        super().__init__(group.num_shards, num_blocks)
        self.group, self.model = group, model

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.group.ask(self.model, name, arguments)

    def everyone(self, name: str) -> list[Any]:
        """A method without arguments."""
        return self.call(name, [()] * self.group.num_shards)


def serve(pipe: Connection, shard: int, num_shards: int) -> None:
    """Answer until the other end is closed."""
    from fedray.server.zero import ZeroShard

    parts: dict[str, ZeroShard] = {}
    while True:
        try:
            model, name, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            if name == "load":
                blueprint, where = arguments
                parts[model] = ZeroShard(blueprint, shard, num_shards, where)
                answer = None
            else:
                answer = getattr(parts[model], name)(*arguments)
            pipe.send_bytes(pickle.dumps((True, answer)))
        except Exception as error:
            pipe.send_bytes(pickle.dumps((False, error)))
