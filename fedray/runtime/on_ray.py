"""The Ray runtime: a few long-lived actors carry many logical clients. The only module that imports ray.

Weights and rows are put into the object store once and read there by every actor of a node; orders go
to whoever is free, answers come back as they finish and are handed on in the order given. An actor that
dies is replaced and its order carried out again: an order holds everything its answer depends on.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedray.errors import FedrayError, RuntimeFailure
from fedray.placement import WallSeconds
from fedray.runtime.carrier import (
    AuditJob,
    Carrier,
    CastShadows,
    Done,
    EvaluateRows,
    LookInto,
    Order,
    Pack,
    TrainPack,
)
from fedray.runtime.flight import Flight, Timed
from fedray.runtime.ray_clients import Team, spread
from fedray.runtime.ray_split import RaySplit, ServerPlan
from fedray.runtime.ray_start import join, not_placed, said, send_by_value
from fedray.runtime.reservation import Reservation, lacking
from fedray.runtime.split import SplitDone, SplitEvaluation
from fedray.server.lockstep import SplitRound
from fedray.training.base_delta import BaseDelta
from fedray.training.evaluate import Outputs
from fedray.training.tap import Heard
from fedray.training.workshop import Blueprint, Stock, open_workshop

# An actor imports torch and transformers, about 5 s on a free core; a crowded node takes far longer.
START_SECONDS = 300
# After so long without an answer it is asked whether anybody is at work at all, and so often before nodes are
# believed, which report what they hold now and then.
PATIENCE_SECONDS, PATIENT_LOOKS = 5, 3
MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where and with how many actors.

    Attributes:
        address: of a running cluster; None starts Ray on this machine.
        num_actors: None is as many as the cluster's CPUs (GPUs on an accelerator) carry.
        own_actor: by client id, the reservation of clients that get an actor of their own.
        num_together: clients of a round under cuts, whose own actors are needed at once.
        object_store_memory: bytes, for a Ray started here.
        server: of a run with cuts.
    """

    address: str | None = None
    num_actors: int | None = None
    own_actor: Mapping[int, Reservation] = field(default_factory=dict)
    num_together: int = 0
    object_store_memory: int | None = None
    server: ServerPlan | None = None

    def server_cpus(self, threads: int) -> int:
        """CPUs that the server's processes reserve."""
        return 0 if self.server is None else self.server.num_cpus(threads)

    def cpus_here(self, threads: int) -> int:
        """CPUs of a Ray started here: bookkeeping, whoever asks for more actors than cores gets them."""
        cores, actors = os.cpu_count() or 1, (self.num_actors or 1) + self.num_together
        return max(cores, actors * threads) + self.server_cpus(threads)


@dataclass(slots=True, eq=False, kw_only=True)
class _Seat:
    """An actor with what it was opened with; ``ready`` refers to its word that its workshop is open."""

    actor: Any
    reservation: Reservation
    client: int | None
    ready: Any


class CarrierActor:
    """A carrier in a process of its own."""

    def __init__(self, blueprint: Blueprint, stock: Stock) -> None:
        """Opens the workshop on the node's shared memory."""
        self._carrier = Carrier(blueprint, stock)

    def ready(self) -> bool:
        """True, once the workshop is open."""
        return True

    def carry_out(self, order: Order) -> Timed:
        """See `Carrier.carry_out`."""
        start = time.perf_counter()
        answer = self._carrier.carry_out(order)
        return Timed(answer=answer, wall_seconds=time.perf_counter() - start)

    def open_split(
        self, packs: Mapping[int, Pack], targets: Sequence[str], base_delta: BaseDelta, clips_as_one: bool
    ) -> None:
        """See `Carrier.open_split`."""
        self._carrier.open_split(packs, targets, base_delta, clips_as_one=clips_as_one)

    def halves(self, name: str, *args: Any) -> Any:
        """A method of the `PackHalves` that were opened."""
        return getattr(self._carrier.halves, name)(*args)


class RayRuntime:
    """Carries out orders on actors."""

    def __init__(self, blueprint: Blueprint, stock: Stock, cluster: Cluster) -> None:
        """Join or start Ray and open the actors.

        Raises:
            RuntimeFailure: there is no cluster at the address, or an actor cannot be placed or opened.
        """
        self._cluster = cluster
        self._shared: list[_Seat] = []
        self._own: dict[int, _Seat] = {}
        self._split: RaySplit | None = None
        self._wall = WallSeconds()
        self._plain = Reservation(
            num_cpus=blueprint.threads, num_gpus=1 if blueprint.device.startswith("cuda") else 0
        )
        self._started_here = join(
            cluster.address, cluster.cpus_here(blueprint.threads), cluster.object_store_memory
        )
        try:
            send_by_value(blueprint.task)
            self._blueprint, self._stock = ray.put(blueprint), ray.put(stock)
            self._shared = [self._open(self._plain) for _ in range(self._num_shared(blueprint.threads))]
            if cluster.server is not None:
                self._split = RaySplit(
                    cluster.server,
                    self._blueprint,
                    self._stock,
                    self._plain,
                    lambda: open_workshop(blueprint, stock),
                )
            self._await_ready()
        except RayError as error:
            self.close()
            raise RuntimeFailure(f"The actors could not be opened: {said(error)}.") from error
        except BaseException:
            self.close()
            raise

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given, whoever finishes first.

        Raises:
            RuntimeFailure: an order outlived three actors, or its actor cannot be placed.
        """
        # A client with an actor of its own waits for that one, whatever goes out first.
        flight = Flight[_Seat](orders, 0 if self._cluster.own_actor else len(self._shared), self._wall)
        finished: dict[int, Done] = {}
        for wanted in range(len(orders)):
            while wanted not in finished:
                self._dispatch(flight)
                position, done = self._one_back(flight)
                if done is not None:
                    finished[position] = done
            yield finished.pop(wanted)

    def train_split(self, split: SplitRound, heard: Heard | None = None) -> SplitDone:
        """A round under a cut; see `RaySplit.train`."""
        assert self._split is not None, "a run with cuts has a server"
        team = self._own_team(split) if self._cluster.own_actor else self._team(split)
        return self._split.train(split, team, heard)

    def evaluate_split(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """The clients' side in this process, the rest on the shards; see `RaySplit.evaluate`."""
        assert self._split is not None, "a run with cuts has a server"
        return self._split.evaluate(evaluation)

    def close(self) -> None:
        """End the actors, and Ray itself only if it was started here."""
        if self._split is not None:
            self._split.close()
        for seat in [*self._shared, *self._own.values()]:
            ray.kill(seat.actor)
        self._shared, self._own = [], {}
        if self._started_here:
            ray.shutdown()

    def _team(self, split: SplitRound) -> Team:
        return Team(
            actors=lambda: [seat.actor for seat in self._shared],
            replace=lambda place: self._replace(self._shared[place]),
            carries=spread(split.packs, len(self._shared)),
        )

    def _own_team(self, split: SplitRound) -> Team:
        """Every client's own actor, all of them at once: under a cut they step together.

        Raises:
            RuntimeFailure: there is no room for all of them.
        """
        clients = [jobs[0].client_id for jobs in split.packs.values()]
        for client in clients:
            if client not in self._own:
                staying = [self._own[other] for other in clients if other in self._own]
                if not self._made_room(self._cluster.own_actor[client], staying) and self._started_here:
                    raise RuntimeFailure(self._not_at_once(clients))
                self._own[client] = self._open(self._cluster.own_actor[client], client)
        waiting = [self._own[client].ready for client in clients]
        if ray.wait(waiting, num_returns=len(waiting), timeout=START_SECONDS)[1]:
            raise RuntimeFailure(self._not_at_once(clients))
        return Team(
            actors=lambda: [self._own[client].actor for client in clients],
            replace=lambda place: self._replace(self._own[clients[place]]),
            carries={place: at for at, place in enumerate(split.packs)},
        )

    def _not_at_once(self, clients: Sequence[int]) -> str:
        reservations = [self._cluster.own_actor[client] for client in clients]
        return (
            f"The {len(clients)} clients of a round under cuts take their steps together, so their own "
            f"actors are needed at once: {not_placed(reservations)}"
        )

    def _num_shared(self, threads: int) -> int:
        if self._cluster.own_actor:
            return 1  # evaluates what belongs to no client
        if self._cluster.num_actors is not None:
            return self._cluster.num_actors
        scarce = "GPU" if self._plain.num_gpus else "CPU"
        taken = self._cluster.server_cpus(threads) if scarce == "CPU" else 0
        left = ray.cluster_resources().get(scarce, 0) - taken
        return max(1, int(left // self._plain.amounts()[scarce]))

    def _dispatch(self, flight: Flight[_Seat]) -> None:
        for position in list(flight.waiting):
            seat = self._free_seat(flight.orders[position], flight.busy)
            if seat is not None:
                flight.sets_out(position, seat, seat.actor.carry_out.remote(flight.orders[position]))
            elif not self._cluster.own_actor:
                return

    def _one_back(self, flight: Flight[_Seat]) -> tuple[int, Done | None]:
        reference = self._first_back(flight)
        position, seat = flight.running.pop(reference)
        try:
            answer = flight.is_back(position, ray.get(reference))
            return position, Done(answer=answer, attempts=flight.attempts[position])
        except RayTaskError as error:
            # The actor lives; its order was refused with a sentence of our own, or the code is wrong.
            raise error.cause if isinstance(error.cause, FedrayError) else error from None
        except RayError as error:
            if flight.attempts[position] >= MAX_ATTEMPTS:
                raise RuntimeFailure(
                    f"A pack of clients was lost with {MAX_ATTEMPTS} actors one after the other, the last "
                    f"one with: {said(error)}. Look at Ray's logs; mostly a node is out of memory: "
                    "lower packs.clients_per_pack or ray.num_actors."
                ) from error
            self._replace(seat)
            flight.waiting.appendleft(position)
            return position, None

    def _first_back(self, flight: Flight[_Seat]) -> Any:
        """The reference that is answered first; if nobody is placed at all, idle actors make room."""
        started = time.monotonic()
        while True:
            back, _ = ray.wait(list(flight.running), num_returns=1, timeout=PATIENCE_SECONDS)
            if back:
                return back[0]
            seats = [seat for _, seat in flight.running.values()]
            unplaced = [seat for seat in seats if not ray.wait([seat.ready], timeout=0)[0]]
            if len(unplaced) < len(seats):
                continue  # somebody is at work, and room comes of itself
            waited = time.monotonic() - started
            for idle in self._in_the_way(unplaced, seats, waited):
                self._end(idle)
            if waited > START_SECONDS:
                raise RuntimeFailure(not_placed([seat.reservation for seat in unplaced]))

    def _in_the_way(self, unplaced: Sequence[_Seat], busy: Sequence[_Seat], waited: float) -> list[_Seat]:
        """Idle actors that hold what is short; later all of them, for room may lie in pieces on nodes."""
        idle = [seat for seat in self._own.values() if seat not in busy]
        short = lacking(ray.available_resources(), [seat.reservation for seat in unplaced])
        in_pieces = waited > PATIENT_LOOKS * PATIENCE_SECONDS and not short and not self._all_have_room()
        if in_pieces or waited > START_SECONDS / 2:
            return idle
        return [seat for seat in idle if short & seat.reservation.amounts().keys()]

    def _all_have_room(self) -> bool:
        """Whether as much is in use as our actors reserve: then those without a word are starting."""
        free = ray.available_resources()
        used = {name: total - free.get(name, 0) for name, total in ray.cluster_resources().items()}
        return not lacking(used, [seat.reservation for seat in [*self._shared, *self._own.values()]])

    def _free_seat(self, order: Order, busy: Sequence[_Seat]) -> _Seat | None:
        match order:
            case TrainPack(jobs=jobs):
                client = jobs[0].client_id
            case AuditJob(job=job):
                client = job.client_id
            case EvaluateRows() | LookInto() | CastShadows():
                client = -1
        if client not in self._cluster.own_actor:
            return next((seat for seat in self._shared if seat not in busy), None)
        if client in self._own:
            return None if self._own[client] in busy else self._own[client]
        if not self._made_room(self._cluster.own_actor[client], busy):
            return None
        self._own[client] = self._open(self._cluster.own_actor[client], client)
        return self._own[client]

    def _made_room(self, wanted: Reservation, busy: Sequence[_Seat]) -> bool:
        """Whether an actor may be opened, after ending as many idle ones as it takes.

        Raises:
            RuntimeFailure: this machine is too small for it even alone.
        """
        totals = ray.cluster_resources()
        while short := lacking(
            totals, [wanted, *(s.reservation for s in [*self._shared, *self._own.values()])]
        ):
            holders = [s for s in self._own.values() if short & s.reservation.amounts().keys()]
            idle = next((seat for seat in holders if seat not in busy), None)
            if idle is not None:
                self._end(idle)
            elif busy:
                return False
            elif self._started_here:
                raise RuntimeFailure(not_placed([wanted]))
            else:
                return True  # a cluster may yet grow
        return True

    def _open(self, reservation: Reservation, client: int | None = None) -> _Seat:
        remote = ray.remote(CarrierActor).options(
            num_cpus=reservation.num_cpus,
            num_gpus=reservation.num_gpus,
            memory=reservation.memory_bytes,
            resources=dict(reservation.resources),
            max_restarts=0,
        )
        actor: Any = remote.remote(self._blueprint, self._stock)
        return _Seat(actor=actor, reservation=reservation, client=client, ready=actor.ready.remote())

    def _end(self, seat: _Seat) -> None:
        assert seat.client is not None
        ray.kill(seat.actor)
        del self._own[seat.client]

    def _replace(self, seat: _Seat) -> None:
        # One that is only out of reach still holds its reservation; what is dead already stays so.
        ray.kill(seat.actor)
        new = self._open(seat.reservation, seat.client)
        if seat.client is None:
            self._shared[self._shared.index(seat)] = new
        else:
            self._own[seat.client] = new

    def _await_ready(self) -> None:
        waiting = [seat.ready for seat in self._shared]
        if self._started_here and lacking(ray.cluster_resources(), [s.reservation for s in self._shared]):
            raise RuntimeFailure(not_placed([seat.reservation for seat in self._shared]))
        ready, late = ray.wait(waiting, num_returns=len(waiting), timeout=START_SECONDS)
        if late:
            raise RuntimeFailure(
                not_placed([seat.reservation for seat in self._shared if seat.ready in late])
            )
        ray.get(ready)
