"""Who can be asked: online, and with battery enough for the least of the menu's work above its reserve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedray.battery import Batteries, Charges
from fedray.cost import Floats, Ints
from fedray.errors import ConfigError, PolicyError
from fedray.policy import Bools, Cohort, View
from fedray.scene import Scene
from fedray.scheduler import Pricing, price_menu

# Clients priced at once.
_MANY = 4096
# Times that clients who are not ready are followed to their next charging; who is not by then never is.
_TRIES = 1000


@dataclass(slots=True, kw_only=True)
class Readiness:
    """The clients of a run as it stands before a round; moments are virtual seconds from the run's start.

    Without batteries whoever is online is ready. With them so is who is charging, or has enough above its
    reserve for the cheapest that fits it of the configuration's menu, with what must still reach it.

    Attributes:
        number: of the round.
        charges: of the batteries as they were left.
        pricing: of the round.
    """

    scene: Scene
    number: int
    charges: Charges
    pricing: Pricing
    _least: dict[int, float] = field(default_factory=dict)

    def cohort(self, client_ids: Ints, at_seconds: float) -> Cohort:
        """These clients as a policy sees them at a moment, with what is in their batteries."""
        plain, batteries = self.scene.cohort(self.number, client_ids), self.scene.batteries
        if batteries is None:
            return plain
        charge = self.charges.at(batteries, client_ids, at_seconds)
        spare = batteries.spare_joules(client_ids, charge, at_seconds)
        return replace(plain, charge_joules=charge, spare_joules=spare)

    def online(self, client_ids: Ints, at_seconds: float) -> Bools:
        """Which of these are ready at a moment, [asked]."""
        there = self.scene.presence.online(client_ids, at_seconds)
        batteries = self.scene.batteries
        if batteries is None:
            return there
        found, places = there.copy(), np.flatnonzero(there)
        found[places] = self.charged(batteries, client_ids[places], at_seconds)
        return found

    def charged(self, batteries: Batteries, client_ids: Ints, at_seconds: float | Floats) -> Bools:
        """Which of these have charge enough at a moment, [asked], online or not."""
        charge = self.charges.at(batteries, client_ids, at_seconds)
        spare = batteries.spare_joules(client_ids, charge, at_seconds)
        enough = np.isinf(spare)
        unsure = np.flatnonzero(~enough & (spare >= 0))
        enough[unsure] = self._least_joules(client_ids[unsure]) <= spare[unsure]
        return enough

    def opens(self, client_ids: Ints, at_seconds: float) -> float:
        """The first moment from ``at_seconds`` on at which one of these is ready; infinity for never."""
        presence, batteries = self.scene.presence, self.scene.batteries
        if batteries is None:
            return presence.opens(client_ids, at_seconds)
        for first in range(0, len(client_ids), _MANY):
            if self.online(client_ids[first : first + _MANY], at_seconds).any():
                return at_seconds
        return float(self._first_ready(batteries, client_ids, at_seconds).min(initial=np.inf))

    def begins(self, at_seconds: float) -> float:
        """`opens` of everybody. Raises ConfigError if a round can never begin."""
        everybody = np.arange(self.scene.num_clients)
        found = self.opens(everybody, at_seconds)
        if np.isinf(found) and self.scene.batteries is not None:
            raise ConfigError(
                f"Round {self.number} can never begin: none of {len(everybody)} clients is ever online while "
                "it is charging, or with charge enough for the least of the menu's work above "
                f"battery.reserve_share = {self.scene.config.battery.reserve_share:g}; lower that, give "
                "battery.charging hours, or a menu that takes less."
            )
        return found

    def asked(self, chosen: Ints, at_seconds: float) -> tuple[float, Ints]:
        """When a round with these clients starts, and who of them is ready then, ascending.

        Raises:
            PolicyError: none of them ever is.
        """
        if self.scene.batteries is None:
            return self.scene.presence.asked(chosen, at_seconds)
        begins = self.opens(chosen, at_seconds)
        if np.isinf(begins):
            raise PolicyError(
                f"select chose {len(chosen)} clients, none of whom is ever online with charge enough; choose "
                "among view.sample()."
            )
        return begins, np.sort(chosen[self.online(chosen, begins)])

    def _first_ready(self, batteries: Batteries, client_ids: Ints, at_seconds: float) -> Floats:
        """When each is ready first, [asked]: who lacks charge gains none before it is charging again."""
        presence = self.scene.presence
        moments = presence.following(client_ids, np.full(len(client_ids), at_seconds))
        for _ in range(_TRIES):
            coming = np.flatnonzero(np.isfinite(moments))
            lacks = coming[~self.charged(batteries, client_ids[coming], moments[coming])]
            if not len(lacks):
                return moments
            later = batteries.next_charging(client_ids[lacks], moments[lacks])
            moments[lacks], comes = later, np.isfinite(later)
            moments[lacks[comes]] = presence.following(client_ids[lacks[comes]], later[comes])
        moments[lacks] = np.inf
        return moments

    def _least_joules(self, client_ids: Ints) -> Floats:
        """Of the menu's offers that fit each client the cheapest's, [asked]; 0 where none does."""
        unknown = np.array([c for c in client_ids.tolist() if c not in self._least], np.int64)
        for first in range(0, len(unknown), _MANY):
            some = unknown[first : first + _MANY]
            offers = price_menu(self.scene.menu, self.scene.cohort(self.number, some), self.pricing)
            least = np.where(offers.fits, offers.joules, np.inf).min(axis=0)
            # Whom nothing fits is asked and left out, as on mains.
            self._least |= zip(some.tolist(), np.where(np.isinf(least), 0.0, least).tolist(), strict=True)
        return np.array([self._least[client] for client in client_ids.tolist()])


def view_of(ready: Readiness, history: Sequence[Mapping[str, object]], at_seconds: float) -> View:
    """What a policy may know before it selects a round's clients, at a moment of the run."""
    scene = ready.scene
    plain = scene.view(ready.number, history, at_seconds)
    batteries = scene.batteries
    if batteries is None:
        return plain
    return replace(
        plain,
        cohort_of=lambda ids: ready.cohort(ids, at_seconds),
        is_online=lambda ids: plain.is_online(ids) & ready.charged(batteries, ids, at_seconds),
        may_be_asked=lambda ids: ready.online(ids, at_seconds),
    )
