"""The orders of one call to actors: who waits, longest first, who is at work, and how often each was sent."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fedray.placement import WallSeconds, longest_first
from fedray.runtime.carrier import Answer, Order, load_of

# For each actor, orders among which the longest goes out first.
ORDERS_AHEAD = 8
Seat = TypeVar("Seat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """An answer, and the wall seconds of the process that gave it."""

    answer: Answer
    wall_seconds: float


@dataclass(slots=True)
class Flight(Generic[Seat]):
    """What is under way; ``running`` has the place and the seat of each order by the reference to its answer.

    Attributes:
        orders: in the order in which answers are handed on.
        num_actors: that any order may go to; 0 where each has an actor of its own, and so none is longest.
        wall: what is known of how long orders take here.
    """

    orders: Sequence[Order]
    num_actors: int
    wall: WallSeconds
    waiting: deque[int] = field(init=False)
    running: dict[Any, tuple[int, Seat]] = field(default_factory=dict)
    attempts: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.wall.lengths([load_of(order) for order in self.orders])
        self.waiting = deque(longest_first(lengths, max(1, ORDERS_AHEAD * self.num_actors)))
        self.attempts = dict.fromkeys(range(len(self.orders)), 0)

    @property
    def busy(self) -> list[Seat]:
        """Seats with an order."""
        return [seat for _, seat in self.running.values()]

    def sets_out(self, place: int, seat: Seat, reference: Any) -> None:
        """An order goes to a seat."""
        self.waiting.remove(place)
        self.attempts[place] += 1
        self.running[reference] = (place, seat)

    def is_back(self, place: int, timed: Timed) -> Answer:
        """The answer of an order, which took so long."""
        self.wall.learn(load_of(self.orders[place]), timed.wall_seconds)
        return timed.answer
