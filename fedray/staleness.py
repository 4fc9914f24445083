"""What an update counts that others have overtaken: functions of its staleness (1903.03934, 2106.06639)."""

from dataclasses import dataclass
from typing import Literal

from fedray.errors import ConfigError

Name = Literal["constant", "polynomial", "hinge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """s(t) of an update against a state that t versions came after; s(0) = 1, and s falls with t.

    FedAsync's (1903.03934): ``constant`` is 1; ``polynomial`` is ``(t + 1) ** -a``, with a = 0.5 also
    FedBuff's (2106.06639); ``hinge`` is 1 up to b, and ``1 / (a (t - b) + 1)`` after it.

    Raises:
        ConfigError: at construction, for an ``a`` of 0 or less or a ``b`` below 0.
    """

    name: Name = "constant"
    a: float = 0.5
    b: int = 0

    def __post_init__(self) -> None:
        if not self.a > 0 or self.b < 0:
            raise ConfigError(f"A staleness has an a above 0 and a b of 0 or more, found {self.a}, {self.b}.")

    def weight(self, staleness: int) -> float:
        """Above 0 and at most 1."""
        match self.name:
            case "constant":
                return 1.0
            case "polynomial":
                return float((staleness + 1) ** -self.a)
            case "hinge":
                return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


CONSTANT = Staleness()
