"""The Ray runtime: a few long-lived actors carry many logical clients. The only module that imports ray.

Weights and rows are put into the object store once and read there by every actor of a node; orders go
to whoever is free, answers come back as they finish and are handed on in the order given. An actor that
dies is replaced and its order carried out again: an order holds everything its answer depends on.
"""

import itertools
import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError

from fedray.errors import FedrayError, RuntimeFailure
from fedray.runtime.carrier import Answer, AuditJob, Carrier, Done, EvaluateRows, Order, TrainPack
from fedray.training.workshop import Blueprint, Stock

# An actor imports torch and transformers, about 5 s on a free core; a crowded node takes far longer.
START_SECONDS = 300
MAX_ATTEMPTS = 3
_LOST = (ActorDiedError, ActorUnavailableError, WorkerCrashedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What Ray sets aside for one actor: bookkeeping on Ray's side, not a limit."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where and with how many actors.

    Attributes:
        address: of a running cluster; None starts Ray on this machine.
        num_actors: None is one per CPU of the cluster.
        own_actor: by client id, the reservation of clients that get an actor of their own.
        object_store_memory: bytes, for a Ray started here.
    """

    address: str | None = None
    num_actors: int | None = None
    own_actor: Mapping[int, Reservation] = field(default_factory=dict)
    object_store_memory: int | None = None


class CarrierActor:
    """A carrier in a process of its own."""

    def __init__(self, blueprint: Blueprint, stock: Stock) -> None:
        """Opens the workshop on the node's shared memory."""
        self._carrier = Carrier(blueprint, stock)

    def ready(self) -> bool:
        """True, once the workshop is open."""
        return True

    def carry_out(self, order: Order) -> Answer:
        """See `Carrier.carry_out`."""
        return self._carrier.carry_out(order)


class RayRuntime:
    """Carries out orders on actors."""

    def __init__(self, blueprint: Blueprint, stock: Stock, cluster: Cluster) -> None:
        """Join or start Ray and open the actors.

        Raises:
            RuntimeFailure: there is no cluster at the address, or an actor cannot be placed.
        """
        self._cluster = cluster
        self._started_here = _join(cluster)
        _send_by_value(blueprint.task)
        self._blueprint = ray.put(blueprint)
        self._stock = ray.put(stock)
        self._shared: list[Any] = []
        self._own: dict[int, Any] = {}
        num_actors = cluster.num_actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # With an actor for every client, one more still evaluates and audits.
        self._shared = [self._open(self._plain()) for _ in range(1 if cluster.own_actor else num_actors)]
        self._await_ready()

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given, whoever finishes first.

        Raises:
            RuntimeFailure: an order outlived three actors.
        """
        flight = _Flight(orders)
        finished: dict[int, Done] = {}
        for wanted in range(len(orders)):
            while wanted not in finished:
                self._dispatch(flight)
                position, done = self._one_back(flight)
                if done is not None:
                    finished[position] = done
            yield finished.pop(wanted)

    def close(self) -> None:
        """End the actors, and Ray itself only if it was started here."""
        for actor in [*self._shared, *self._own.values()]:
            ray.kill(actor)
        if self._started_here:
            ray.shutdown()

    def _dispatch(self, flight: "_Flight") -> None:
        busy = {id(actor) for _, actor in flight.running.values()}
        for position in list(flight.waiting):
            actor = self._free_actor(flight.orders[position], busy)
            if actor is not None:
                busy.add(id(actor))
                flight.waiting.remove(position)
                flight.attempts[position] += 1
                reference = actor.carry_out.remote(flight.orders[position])
                flight.running[reference] = (position, actor)

    def _one_back(self, flight: "_Flight") -> tuple[int, Done | None]:
        ready, _ = ray.wait(list(flight.running), num_returns=1)
        position, actor = flight.running.pop(ready[0])
        try:
            return position, Done(answer=ray.get(ready[0]), attempts=flight.attempts[position])
        except _LOST as error:
            self._replace(actor)
            if flight.attempts[position] >= MAX_ATTEMPTS:
                raise RuntimeFailure(
                    f"A pack of clients was lost with {MAX_ATTEMPTS} actors one after the other, the last "
                    f"one with: {_first_line(error)}. Look at Ray's logs; mostly a node is out of memory: "
                    "lower packs.clients_per_pack or ray.num_actors."
                ) from error
            flight.waiting.appendleft(position)
            return position, None
        except RayTaskError as error:
            # The actor lives; its order was refused with a sentence of our own, or the code is wrong.
            raise error.cause if isinstance(error.cause, FedrayError) else error from None

    def _free_actor(self, order: Order, busy: set[int]) -> Any | None:
        match order:
            case TrainPack(jobs=jobs):
                client = jobs[0].client_id
            case AuditJob(job=job):
                client = job.client_id
            case EvaluateRows():
                client = -1
        if client in self._cluster.own_actor:
            if client not in self._own:
                self._own[client] = self._open(self._cluster.own_actor[client])
                self._await_ready([self._own[client]])
            actor = self._own[client]
            return None if id(actor) in busy else actor
        return next((actor for actor in self._shared if id(actor) not in busy), None)

    def _plain(self) -> Reservation:
        blueprint: Blueprint = ray.get(self._blueprint)
        return Reservation(
            num_cpus=blueprint.threads, num_gpus=1 if blueprint.device.startswith("cuda") else 0
        )

    def _open(self, reservation: Reservation) -> Any:
        remote = ray.remote(CarrierActor).options(
            num_cpus=reservation.num_cpus,
            num_gpus=reservation.num_gpus,
            memory=reservation.memory_bytes,
            resources=dict(reservation.resources),
            max_restarts=0,
        )
        return remote.remote(self._blueprint, self._stock)

    def _replace(self, actor: Any) -> None:
        if actor in self._shared:
            self._shared[self._shared.index(actor)] = self._open(self._plain())
            return
        client = next(client for client, own in self._own.items() if own is actor)
        self._own[client] = self._open(self._cluster.own_actor[client])

    def _await_ready(self, actors: Sequence[Any] | None = None) -> None:
        waiting = [actor.ready.remote() for actor in (self._shared if actors is None else actors)]
        ready, late = ray.wait(waiting, num_returns=len(waiting), timeout=START_SECONDS)
        if late:
            raise RuntimeFailure(
                f"{len(late)} of {len(waiting)} actors were not placed within {START_SECONDS} s. The cluster "
                f"has {_resources(ray.cluster_resources())}, free are "
                f"{_resources(ray.available_resources())}. Ask for fewer actors (ray.num_actors), or "
                "declare less memory and fewer resources per client."
            )
        ray.get(ready)


class _Flight:
    """The orders of one call: waiting, running, and how often each was tried."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders = orders
        self.waiting = deque(range(len(orders)))
        self.running: dict[Any, tuple[int, Any]] = {}
        self.attempts = dict.fromkeys(range(len(orders)), 0)


def _join(cluster: Cluster) -> bool:
    """Whether Ray was started here, and so must be ended here."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    try:
        if cluster.address is None:
            ray.init(include_dashboard=False, object_store_memory=cluster.object_store_memory, **quiet)
        else:
            ray.init(address=cluster.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if cluster.address is None else f"at {cluster.address!r}"
        raise RuntimeFailure(
            f"No Ray cluster could be reached {where}: {_first_line(error)}. Start one with 'ray start "
            "--head', give its address as HOST:6379, or leave the address out to start Ray here."
        ) from error
    # A cluster that others started is left running.
    return cluster.address is None


def _send_by_value(task: object) -> None:
    """A task from a file is no module that an actor could import: send its code along."""
    module = sys.modules[type(task).__module__]
    if not module.__name__.startswith("fedray."):
        ray.cloudpickle.register_pickle_by_value(module)


def _resources(resources: Mapping[str, float]) -> str:
    known = {"CPU": "CPUs", "GPU": "GPUs", "memory": "bytes of memory"}
    return ", ".join(f"{resources[name]:g} {words}" for name, words in known.items() if name in resources)


def _first_line(error: BaseException) -> str:
    return next(itertools.chain(filter(None, str(error).strip().splitlines()), [type(error).__name__]))
