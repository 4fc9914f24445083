"""The clients' side of a round under a cut, on the actors that carry clients.

Packs are shared out once and stay where they are for the round. Who does not answer within the deadline
is given up: its clients drop out, and the others go on without them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedray.errors import FedrayError
from fedray.placement import shared_out
from fedray.runtime.split import ServerSetting
from fedray.server.lockstep import SplitRound
from fedray.training.boundary import Messages, PackMessages
from fedray.training.client_half import BelowTheCut
from fedray.training.job import Job


class ClientsLost(Exception):
    """An actor died with its packs; the round can be begun again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The actors that carry the clients of a round.

    Attributes:
        actors: as they are now.
        replace: opens a new actor in the place of one.
        carries: the place of the actor that carries each pack.
    """

    actors: Callable[[], Sequence[Any]]
    replace: Callable[[int], None]
    carries: Mapping[int, int]


def spread(packs: Mapping[int, Sequence[Job]], num_actors: int) -> dict[int, int]:
    """An actor for each pack of a round: all of them step together, so all are placed beforehand."""
    places = sorted(packs)
    weights = [
        float(sum(job.num_steps * job.assignment.rides_per_step * job.tokens for job in packs[place]))
        for place in places
    ]
    return dict(zip(places, shared_out(weights, num_actors), strict=True))


class RayClients:
    """`fedray.server.lockstep.Clients` over actors."""

    def __init__(self, team: Team, split: SplitRound, setting: ServerSetting) -> None:
        """Of a round; nobody is asked yet."""
        self._actors, self._actor_of = team.actors(), team.carries
        self._split, self._setting = split, setting
        self.vanished: set[int] = set()

    def open(self) -> None:
        """Send the jobs. Raises ClientsLost."""
        setting, moved = self._setting, self._split.base_delta
        packs = self._shared_out(self._split.packs).items()
        self._ask("open_split", {a: (own, setting.targets, moved, setting.clips_as_one) for a, own in packs})

    def ascend(self, number: int) -> PackMessages:
        """See `fedray.server.lockstep.Clients`."""
        return self._merged("ascend", {actor: (number,) for actor in self._living()})

    def turn(self, exits: PackMessages) -> PackMessages:
        """See `fedray.server.lockstep.Clients`."""
        return self._merged("turn", {a: (own,) for a, own in self._shared_out(exits).items()})

    def descend(self, down: PackMessages) -> Mapping[int, float]:
        """See `fedray.server.lockstep.Clients`."""
        answers = self._halves("descend", {a: (own,) for a, own in self._shared_out(down).items()})
        return {client: square for answer in answers for client, square in answer.items()}

    def finish(self) -> Mapping[int, BelowTheCut]:
        """See `fedray.server.lockstep.Clients`; without packs that vanished."""
        answers = self._halves("finish", {actor: () for actor in self._living()})
        return {place: found for answer in answers for place, found in answer.items()}

    def dead(self) -> set[int]:
        """Places of actors whose process is gone."""
        pings = {actor: self._actors[actor].ready.remote() for actor in self._living()}
        gone = set()
        for actor, reference in pings.items():
            try:
                ray.get(reference, timeout=self._setting.client_deadline_seconds)
            except RayError:
                gone.add(actor)
        return gone

    def _living(self) -> list[int]:
        return sorted(set(self._actor_of.values()) - self.vanished)

    def _shared_out(self, by_pack: Mapping[int, Any]) -> dict[int, dict[int, Any]]:
        out: dict[int, dict[int, Any]] = {}
        for place, value in by_pack.items():
            if self._actor_of[place] not in self.vanished:
                out.setdefault(self._actor_of[place], {})[place] = value
        return out

    def _merged(self, name: str, arguments: Mapping[int, tuple[Any, ...]]) -> PackMessages:
        merged: dict[int, Messages] = {}
        for answer in self._halves(name, arguments):
            merged |= answer
        return merged

    def _halves(self, name: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        return self._ask("halves", {actor: (name, *own) for actor, own in arguments.items()})

    def _ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """Answers of those in time, in the order asked."""
        asked = {getattr(self._actors[actor], method).remote(*own): actor for actor, own in arguments.items()}
        if not asked:
            return []
        deadline = self._setting.client_deadline_seconds
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=deadline)
        self.vanished |= {asked[reference] for reference in late}
        try:
            return [ray.get(reference) for reference in asked if reference in ready]
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, FedrayError):
                raise cause from None
            raise ClientsLost(str(error).strip().splitlines()[-1]) from error
