"""Taps: who looks on, as an honest but curious server would, at updates and at what crosses cuts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedray.training.boundary import Message, PackMessages
from fedray.training.job import Job, Update

# Hidden states go up at a cut and, under a tail, down again; gradients the other way. To a black box a loss.
Passing = Literal["states_up", "states_down", "gradient_up", "gradient_down", "loss_down"]
# Told of a step's number, what passes, and the messages by pack and client.
Heard = Callable[[int, Passing, PackMessages], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One client's message at its cut, as the server sends or receives it.

    Attributes:
        step: of the client's round, from 0; of a black box the look.
        passing: what it is.
        message: with its states still coded (`fedray.model.codecs.decode`).
    """

    step: int
    passing: Passing
    message: Message


class Tap:
    """Looks on at a run and changes nothing: what it is shown are copies. Override what is of interest.

    It sees what the server sees: updates after a client's own noise, codec and masks. A round that Ray has to
    begin again is heard again. Who tampers instead is an attacker (`attackers` in a configuration): that is
    done where an update leaves, before codecs and masks, in whatever process trains it.
    """

    def update(self, job: Job, update: Update) -> None:
        """An update that came, whether it counts or failed.

        Args:
            job: what the client was told to do, with the adapter it started from.
            update: with its delta: what is decoded, or still masked; None where the client failed.
        """

    def crossed(self, job: Job, crossing: Crossing) -> None:
        """A message at a cut, in the order of steps; within one in the order of packs and clients."""
