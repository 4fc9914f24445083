"""Rounds under a cut on Ray: clients on the shared actors, in step with the server's; and evaluations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fedray.errors import RuntimeFailure
from fedray.runtime.ray_clients import ClientsLost, RayClients, Team
from fedray.runtime.ray_server import ServerLost, WholeServer, ZeroServer
from fedray.runtime.reservation import Reservation
from fedray.runtime.split import ServerSetting, SplitDone, SplitEvaluation, done
from fedray.server.lockstep import SplitRound, run_lockstep, updates_of
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.training.data import Rows
from fedray.training.evaluate import Outputs, evaluate_rows
from fedray.training.tap import Heard
from fedray.training.train import Workshop

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """The server of a run with cuts; ``zero`` is what its shards are opened with, None for one process."""

    setting: ServerSetting
    zero: ShardBlueprint | None

    def num_cpus(self, threads: int) -> int:
        """That its processes reserve."""
        return threads * (1 if self.zero is None else self.setting.num_shards)


class RaySplit:
    """Carries out rounds under a cut."""

    def __init__(
        self,
        plan: ServerPlan,
        blueprint: Any,
        stock: Any,
        plain: Reservation,
        open_here: Callable[[], Workshop],
    ) -> None:
        """How to work.

        Args:
            plan: of the server.
            blueprint: a reference, as ``stock`` is.
            stock: for a server in one process.
            plain: what a process reserves.
            open_here: a workshop in this process, which an evaluation over shards takes.
        """
        self._plan, self._blueprint, self._stock, self._plain = plan, blueprint, stock, plain
        self._open_here = open_here
        self._here: Workshop | None = None
        self._server: WholeServer | ZeroServer | None = None

    def train(self, split: SplitRound, team: Team, heard: Heard | None = None) -> SplitDone:
        """A round, begun again if a process dies over it. Raises RuntimeFailure: it was lost three times."""
        setting, lost = self._plan.setting, ""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            clients = RayClients(team, split, setting)
            try:
                server = self._opened()
                server.open(split)
                clients.open()
                traffic = run_lockstep(clients, server, setting.order, shared=setting.shared, heard=heard)
                return done(dict(updates_of(split.packs, clients, server)), traffic, attempt)
            except (ServerLost, ClientsLost) as error:
                # Shards that lost step cannot go on, and what clients had is of no use without them.
                lost = str(error)
                self.close()
            finally:
                for place in clients.vanished | clients.dead():
                    team.replace(place)
        raise RuntimeFailure(_lost("A round under a cut", lost))

    def evaluate(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """Of each chunk of rows, with stem, head and the blocks beside the server's in this process.

        Raises:
            RuntimeFailure: the shards were lost three times over one chunk.
        """
        for rows in evaluation.chunks:
            yield self._evaluated(evaluation, rows)

    def _evaluated(self, evaluation: SplitEvaluation, rows: Rows) -> Outputs:
        lost = ""
        assert self._plan.zero is not None, "a server in one process evaluates whole models"
        for _ in range(MAX_ATTEMPTS):
            try:
                server = self._opened()
                assert isinstance(server, ZeroServer)
                with self._workshop_here(self._plan.zero.threads) as workshop:
                    return evaluate_rows(workshop, evaluation.adapter, rows, evaluation.beside(server.passed))
            except ServerLost as error:
                lost = str(error)
                self.close()
        raise RuntimeFailure(_lost("An evaluation", lost))

    @contextmanager
    def _workshop_here(self, num_threads: int) -> Iterator[Workshop]:
        """With as many threads as a pack is given: another number may round otherwise."""
        threads = torch.get_num_threads()
        try:
            if self._here is None:
                self._here = self._open_here()
            torch.set_num_threads(num_threads)
            yield self._here
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """End the server's processes."""
        if self._server is not None:
            self._server.close()
        self._server = None

    def _opened(self) -> WholeServer | ZeroServer:
        if self._server is None and self._plan.zero is not None:
            self._server = ZeroServer(self._plan.zero, self._plan.setting.num_shards)
        elif self._server is None:
            self._server = WholeServer(
                self._blueprint,
                self._stock,
                self._plan.setting,
                num_cpus=self._plain.num_cpus,
                num_gpus=self._plain.num_gpus,
            )
        return self._server


def _lost(what: str, because: str) -> str:
    return (
        f"{what} was lost {MAX_ATTEMPTS} times, the last time because {because}. Look at Ray's logs; mostly "
        "a node is out of memory: lower server.num_shards or packs.clients_per_pack."
    )
