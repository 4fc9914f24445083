"""The inner loop of a round under a cut: all packs take a step, or a look, the server sweeps, all step back.

Who computes what stays behind two protocols, so the loop is the same in one process and over actors.
With the order ``queue`` the server takes one pack after another instead, as the literature does.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from torch import Tensor

from fedray.adapter import Adapter
from fedray.training.base_delta import BaseDelta
from fedray.training.boundary import NUMBER_BYTES, Messages, PackMessages
from fedray.training.client_half import BelowTheCut
from fedray.training.job import Job, Update
from fedray.training.link import SentUp, arrived
from fedray.training.shares import joined
from fedray.training.tap import Heard, Passing
from fedray.training.train import observed, update_of

Order = Literal["sweep", "queue"]
Finished = tuple[list[Adapter | None], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRound:
    """All packs of a round whose clients have a cut.

    Attributes:
        packs: by place.
        shared: the server's one adapter; None gives every client its own.
        base_delta: what the rule keeps beside the frozen weights, on both sides of the cuts.
    """

    packs: Mapping[int, Sequence[Job]]
    shared: Adapter | None = None
    base_delta: BaseDelta = field(default_factory=dict)


class Clients(Protocol):
    """The clients' sides of all packs of a round; see `fedray.training.client_half.ClientHalf`."""

    def ascend(self, number: int) -> PackMessages:
        """Up to the cut; packs that are done are left out."""

    def turn(self, exits: PackMessages) -> PackMessages:
        """Through the tails."""

    def descend(self, down: PackMessages) -> Mapping[int, float]:
        """Back down and a step, for the packs named; told norms by client."""

    def finish(self) -> Mapping[int, BelowTheCut]:
        """By pack."""


class Server(Protocol):
    """All shards of the server for a round; see `fedray.server.server_half.ServerHalf`."""

    def forward(self, messages: PackMessages) -> PackMessages:
        """A sweep up; what leaves from the top: for tails, and losses to black boxes."""

    def backward(self, gradients: PackMessages) -> tuple[PackMessages, list[Tensor]]:
        """Back down; the shared adapter's gradients summed over shards."""

    def settle(self, squares: Mapping[int, float]) -> None:
        """Step the clients' own adapters."""

    def settle_shared(self, gradients: Sequence[Tensor]) -> None:
        """Step the shared adapter."""

    def finish(self) -> Mapping[int, Finished]:
        """By pack: shares of the updates, sums of losses."""


class Traffic:
    """Bytes and messages that crossed the cut, by client."""

    def __init__(self, heard: Heard | None = None) -> None:
        """Nothing yet. Args: heard: told of all that passes."""
        self.up_bytes: dict[int, int] = {}
        self.down_bytes: dict[int, int] = {}
        self.num_messages: dict[int, int] = {}
        self.step = 0  # the one under way
        self._heard = heard

    def passed(self, what: Passing, messages: PackMessages) -> None:
        """These went up or down."""
        self._add(self.up_bytes if what.endswith("up") else self.down_bytes, messages)
        if self._heard is not None and messages:
            self._heard(self.step, what, messages)

    def norms_up(self, squares: Mapping[int, float]) -> None:
        """These went up with the next message, or with the update."""
        for client in squares:
            self.up_bytes[client] = self.up_bytes.get(client, 0) + NUMBER_BYTES

    def _add(self, into: dict[int, int], messages: PackMessages) -> None:
        for by_client in messages.values():
            for client, message in by_client.items():
                if message.num_bytes:
                    into[client] = into.get(client, 0) + message.num_bytes
                    self.num_messages[client] = self.num_messages.get(client, 0) + 1


def run_lockstep(
    clients: Clients, server: Server, order: Order, *, shared: bool, heard: Heard | None = None
) -> Traffic:
    """Every step of a round, until the last pack is done; ``heard`` is told of every message."""
    traffic = Traffic(heard)
    for number in itertools.count():
        traffic.step = number
        up = clients.ascend(number)
        if not up:
            return traffic
        traffic.passed("states_up", up)
        groups = [list(up)] if order == "sweep" else [[place] for place in up]
        for group in groups:
            _step({place: up[place] for place in group}, clients, server, traffic, shared=shared)
    raise AssertionError("a round ends")


def _step(up: PackMessages, clients: Clients, server: Server, traffic: Traffic, *, shared: bool) -> None:
    leaving = server.forward(up)
    losses = {place: sent for place, sent in leaving.items() if _are_losses(sent)}
    exits = {place: sent for place, sent in leaving.items() if place not in losses}
    traffic.passed("loss_down", losses)
    traffic.passed("states_down", exits)
    turned = clients.turn(exits) if exits else {}
    traffic.passed("gradient_up", turned)
    down, gradients = server.backward(turned)
    traffic.passed("gradient_down", down)
    answers = {**losses, **down}
    squares = clients.descend({place: answers.get(place, {}) for place in up})
    traffic.norms_up(squares)
    server.settle(squares)
    if shared and gradients:
        riders = sum(len(messages) for messages in up.values())
        server.settle_shared([gradient / riders for gradient in gradients])


def _are_losses(sent: Messages) -> bool:
    """Whether a pack is told losses: its clients are all black boxes, or none is."""
    return any(message.loss is not None for message in sent.values())


def updates_of(
    packs: Mapping[int, Sequence[Job]], clients: Clients, server: Server
) -> Iterator[tuple[int, list[Update]]]:
    """What each client's round came to, pack by pack: both shares of its update in one.

    Packs whose clients vanished are left out.
    """
    below, above = clients.finish(), server.finish()
    for place, jobs in packs.items():
        if place not in below:
            continue
        own, (theirs, losses) = below[place], above[place]
        yield (
            place,
            [
                observed(
                    _whole(
                        job,
                        own.sent[at],
                        theirs[at],
                        (own.loss_sums[at] + losses[at]) / own.rows[at],
                        own.wall_seconds / len(jobs),
                    ),
                    own.statistics[at],
                )
                for at, job in enumerate(jobs)
            ],
        )


def _whole(job: Job, sent: SentUp | None, server: Adapter | None, loss: float, seconds: float) -> Update:
    """A client's update from what it sent of its own share and from what the server trained for it."""
    if sent is None or server is None:
        return update_of(job, None, loss, seconds)
    update = update_of(job, joined(arrived(job, sent.coded), server), loss, seconds)
    if update.delta is None:
        return update
    return replace(update, coded=sent.coded, client_state=sent.client_state)
