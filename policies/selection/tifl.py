"""TiFL (2001.09249): clients in tiers by how long they take, and each round all from one tier.

Reproduced: tiers of equal size by seconds; a tier is drawn, then clients within it, uniformly. Static, with
given ``probabilities`` or all tiers alike; or adaptive, with ``interval``: every so many rounds tiers are
weighed anew, the worst most: of n tiers with credits left the i-th worst, from 0, has (n - i) / (n (n + 1)
/ 2).

Our choices: a client's seconds are those of its largest offer that fits, as priced in the first round from
what it declares, where the paper lets clients train for some rounds; whoever nothing fits is in no tier. A
tier counts as the worse the larger the mean loss its clients last reported: a policy sees no test accuracy.
Published numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.policy import State, View
from fedray.seeds import generator

_NO_TIER = -1
_AT_ONCE = 65536  # clients priced together, when the whole fleet is


class Tifl:
    """Its state has each client's tier, and of each tier its credits, chances and last mean loss."""

    def __init__(
        self,
        *,
        num_tiers: int = 5,
        probabilities: Sequence[float] | None = None,
        interval: int | None = None,
        credits_per_tier: int | None = None,
    ) -> None:
        """How tiers are drawn.

        Args:
            num_tiers: of equal size; fewer where fewer clients can do anything.
            probabilities: of each tier, the fastest first.
            interval: rounds after which tiers are weighed anew by their losses; never if absent.
            credits_per_tier: rounds in which a tier may be drawn at most; any number if absent.

        Raises:
            PolicyError: an option is out of range, or two of them contradict each other.
        """
        if num_tiers < 1 or num_tiers > 127:
            raise PolicyError(f"tifl: num_tiers is 1 to 127, found {num_tiers}.")
        for name, value in (("interval", interval), ("credits_per_tier", credits_per_tier)):
            if value is not None and value < 1:
                raise PolicyError(f"tifl: {name} is 1 or more, or absent; found {value}.")
        if probabilities is not None:
            _check(probabilities, num_tiers)
            if interval is not None:
                raise PolicyError(
                    "tifl: probabilities stay, and interval weighs tiers anew; give one of them."
                )
        self._num_tiers, self._given, self._interval = num_tiers, probabilities, interval
        self._credits = credits_per_tier

    def select(self, view: View, state: State) -> tuple[Ints, State]:
        """Clients of one tier: all of it where it has fewer than a round asks for.

        Raises:
            PolicyError: every tier's credits are spent, or the only tiers left have no chance.
        """
        if "tier" not in state:
            state = self._profiled(view)
        if not len(state["chance"]):
            return view.sample(), state  # nothing fits anybody, and the engine says so
        random = generator(view.seed, "tifl")
        everybody = np.arange(view.num_clients)
        able = np.where(view.may_be_asked(everybody), state["tier"], _NO_TIER)
        chance = np.where(state["credits"] > 0, state["chance"], 0.0)
        if not chance.any():
            raise PolicyError(
                f"tifl: the {self._credits} credits of every tier that has a chance are spent in round "
                f"{view.round}; raise credits_per_tier."
            )
        # A tier that nobody can be asked of is left out, unless they all are.
        present = np.where(np.isin(np.arange(len(chance)), able), chance, 0.0)
        if not present.any():
            return view.sample(), state
        tier = int(random.choice(len(chance), p=present / present.sum()))
        members = np.flatnonzero(able == tier)
        chosen = random.choice(members, min(view.clients_per_round, len(members)), replace=False)
        left = state["credits"].copy()
        left[tier] -= 1
        return np.sort(chosen), {**state, "credits": left}

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """The mean loss of the tier that took part; and new chances where they are due."""
        if not len(state["chance"]):
            return state
        losses, finished = state["loss"].copy(), state["rounds"] + 1
        fine = [record for record in records if record["outcome"] == "ok"]
        own = np.array([record["loss"] for record in fine])
        tiers = state["tier"][np.array([record["client_id"] for record in fine], np.int64)]
        for tier in np.unique(tiers):
            losses[tier] = own[tiers == tier].mean()
        due = self._interval is not None and finished % self._interval == 0
        chance = _by_loss(losses, state["credits"]) if due else state["chance"]
        return {**state, "loss": losses, "chance": chance, "rounds": finished}

    def _profiled(self, view: View) -> State:
        seconds = np.concatenate(
            [
                _seconds(view, np.arange(start, min(start + _AT_ONCE, view.num_clients)))
                for start in range(0, view.num_clients, _AT_ONCE)
            ]
        )
        able = np.argsort(seconds, kind="stable")[: int(np.isfinite(seconds).sum())]
        num_tiers = min(self._num_tiers, len(able))
        tier = np.full(view.num_clients, _NO_TIER, np.int8)
        for number, members in enumerate(np.array_split(able, max(num_tiers, 1))):
            tier[members] = number
        given = np.ones(num_tiers) if self._given is None else np.array(self._given, np.float64)
        return {
            "tier": tier,
            "chance": given[:num_tiers],
            "credits": np.full(num_tiers, np.iinfo(np.int64).max if self._credits is None else self._credits),
            "loss": np.full(num_tiers, np.inf),  # of a tier that nobody has heard of
            "rounds": 0,
        }


def _seconds(view: View, ids: Ints) -> Floats:
    """What each takes for its largest offer, [ids]; infinity where nothing fits."""
    offers = view.offers(ids)
    return offers.seconds_of(offers.best(offers.sum_of_ranks))


def _by_loss(losses: Floats, left: Ints) -> Floats:
    """The chances of tiers with credits, [tiers]: the largest loss first."""
    able = np.flatnonzero(left > 0)
    worst_first = able[np.argsort(-losses[able], kind="stable")]
    n = len(able)
    chance = np.zeros(len(losses))
    chance[worst_first] = (n - np.arange(n)) / (n * (n + 1) / 2)
    return chance


def _check(probabilities: Sequence[float], num_tiers: int) -> None:
    if len(probabilities) != num_tiers or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise PolicyError(
            f"tifl: probabilities are {num_tiers} numbers, one a tier, not negative, with the sum 1; found "
            f"{list(probabilities)}."
        )
