"""REFL (EuroSys'23): who is online now and will not be soon comes first.

Reproduced, after the official code: clients foretell whether they stay online for a window, and for the
window after it. Those who stay for the first and not for the second are asked first, in an order drawn anew;
then the others, likewise. The window is as long as rounds are: after a round of D seconds it is

    window = 0.75 D + 0.25 window

Forecasts are right with the probability ``accuracy`` and wrong otherwise, drawn for each client, window and
round; what clients foretell in fedray is exact.

REFL also asks as many fewer as late updates are about to land: where rounds overlap (``pace.late: join``)
that is so of itself, since only free places are filled. Its weights of late updates are ``pace.staleness``,
polynomial with exponent 1, without the part that looks at how far an update is from the others. Our choices:
D is the longest that a client of the round was on its way; the first window is the median of what candidates
take for their largest offer; candidates are ``pool`` times as many as are asked, drawn uniformly. Without a
trace or a daily rhythm nobody leaves, and all are drawn alike. The paper's full text was not read, its
numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Bools, State, View
from fedray.seeds import derive_seed, generator, uniforms

_NEWEST = 0.75


class Refl:
    """Its state has the window, in virtual seconds."""

    def __init__(
        self, *, accuracy: float = 0.9, first_window_seconds: float | None = None, pool: int = 10
    ) -> None:
        """How forecasts are, and whom it asks for them.

        Args:
            accuracy: share of forecasts that are right; the paper's experiments assume 0.9.
            first_window_seconds: of the first round; from prices if absent.
            pool: candidates for each client that is wanted.

        Raises:
            PolicyError: an option is out of range.
        """
        given = first_window_seconds is None or first_window_seconds > 0
        if not 0 <= accuracy <= 1 or pool < 1 or not given:
            raise PolicyError(
                "refl: accuracy is 0 to 1, pool 1 or more and first_window_seconds above 0 or absent; found "
                f"{accuracy:g}, {pool} and {first_window_seconds}."
            )
        self._accuracy, self._first, self._pool = accuracy, first_window_seconds, pool

    def select(self, view: View, state: State) -> tuple[Ints, State]:
        """Who is about to leave, then others."""
        ids = view.sample(self._pool * view.clients_per_round)
        window = state["window"] if "window" in state else self._first_window(view, ids)
        stays = self._foretold(view, ids, 0.0, window)
        leaves_soon = stays & ~self._foretold(view, ids, window, window)
        drawn = generator(view.seed, "refl").permutation(len(ids))
        order = drawn[np.argsort(~leaves_soon[drawn], kind="stable")]
        return ids[order[: view.clients_per_round]], {**state, "window": window}

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """The window of the next round."""
        if not records:
            return state
        lasted = max(record["virtual_seconds"] for record in records)
        return {**state, "window": _NEWEST * lasted + (1 - _NEWEST) * state.get("window", lasted)}

    def _foretold(self, view: View, ids: Ints, after_seconds: float, seconds: float) -> Bools:
        """What clients say of a window, mistakes among it."""
        exact = view.stays_online(ids, after_seconds, seconds)
        seed = derive_seed(view.seed, "refl this window" if after_seconds == 0 else "refl next window")
        right = uniforms(seed, ids)[:, 0] < self._accuracy
        told: Bools = exact == right
        return told

    def _first_window(self, view: View, ids: Ints) -> float:
        if self._first is not None or not len(ids):
            return self._first or 1.0  # with nobody to ask the window is no matter
        offers = view.offers(ids)
        seconds = offers.seconds_of(offers.best(offers.sum_of_ranks))
        able = np.isfinite(seconds)
        return float(np.median(seconds[able])) if able.any() else 1.0
