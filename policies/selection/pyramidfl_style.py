"""PyramidFL-style (MobiCom'22): Oort's choice with gradients for its utility in place of losses.

Oort takes losses because the norms of gradients are dear; a client that trains knows them anyway. Client i
last took part in round L(i), with rows B_i, in t_i seconds, and its blocks' gradients had the norms g(i, b):

    U(i) = |B_i| sqrt(sum over b of g(i, b)^2)
    score(i) = ((min(U(i), clip) - min U) / (clip - min U) + sqrt(0.1 ln R / L(i))) (T / t_i)^2 if t_i > T

with g the mean over steps, clip the 0.9 quantile of U, and T a percentile of the t_i. A share of the round,
0.9 and 0.98 times less each round until 0.3, goes to clients never tried, drawn uniformly; the others are the
best by score.

Style: after a summary and the published code, whose local work that fills the time until the slowest is done
is the policy `fill_idle_time`. Left out: uploads that drop the more of an update the lower its client ranks,
and Oort's pacer, cutoff and draws among good clients. Not copied: a speed in samples a millisecond that is
multiplied as if it were milliseconds a sample. Numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.known import Known, learnt
from fedray.policy import State, View

_CLIP, _UNCERTAINTY = 0.9, 0.1
_FALLS, _LEAST_EXPLORED = 0.98, 0.3


class PyramidFl:
    """Its state has U, seconds and last round of each client that was tried."""

    observables = frozenset({"grad_norm"})

    def __init__(
        self, *, exploration: float = 0.9, penalty: float = 2.0, percentile: float = 30.0, pool: int = 5
    ) -> None:
        """Oort's parameters.

        Args:
            exploration: share of the first round's clients never tried.
            penalty: the exponent of T / t_i.
            percentile: of seconds, that is T.
            pool: clients drawn for each that is wanted, among whom those never tried are found.

        Raises:
            PolicyError: an option is out of range.
        """
        if not 0 <= exploration <= 1 or penalty < 0 or not 0 <= percentile <= 100 or pool < 1:
            raise PolicyError(
                "pyramidfl_style: exploration is 0 to 1, penalty 0 or more, percentile 0 to 100 and pool 1 "
                f"or more; found {exploration:g}, {penalty:g}, {percentile:g} and {pool}."
            )
        self._exploration, self._penalty = exploration, penalty
        self._percentile, self._pool = percentile, pool

    def select(self, view: View, state: State) -> Ints:
        """The best that were tried, and some that were not."""
        count = min(view.clients_per_round, view.num_clients)
        known: Known = state.get("known", {})
        tried: Ints = known["ids"] if known else np.zeros(0, np.int64)
        drawn = view.sample(self._pool * count)
        new = drawn[~np.isin(drawn, tried)]
        share = max(self._exploration * _FALLS ** (view.round - 1), min(_LEAST_EXPLORED, self._exploration))
        best = self._best_first(view, known) if known else tried
        wanted = min(count - int(count * share), len(best))
        untried = np.random.default_rng(view.seed).permutation(new)[: count - wanted]
        # Where few are left to try, the others take their places.
        return np.concatenate([best[: count - len(untried)], untried])

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """What those whose update counted have told."""
        fine = [record for record in records if record["outcome"] == "ok"]
        if not fine:
            return state
        norms = [record["statistics"]["grad_norm"] / max(record["num_steps"], 1) for record in fine]
        rows = np.array([record["num_rows"] for record in fine], np.float64)
        news: Known = {
            "ids": np.array([record["client_id"] for record in fine], np.int64),
            # A block that a client does not train has no norm.
            "utility": rows * np.array([np.sqrt(np.nansum(own**2)) for own in norms]),
            "seconds": np.array([record["virtual_seconds"] for record in fine], np.float64),
            "last": np.array([record["round"] for record in fine], np.float64),
        }
        return {"known": learnt(state.get("known", {}), news)}

    def _best_first(self, view: View, known: Known) -> Ints:
        able = view.may_be_asked(known["ids"])
        order = np.argsort(-self._scores(known, view.round)[able], kind="stable")
        best: Ints = known["ids"][able][order]
        return best

    def _scores(self, known: Known, round_number: int) -> Floats:
        utility, seconds = known["utility"], known["seconds"]
        clip, least = np.quantile(utility, _CLIP), utility.min()
        spread = clip - least
        scores: Floats = (np.minimum(utility, clip) - least) / (spread if spread > 0 else 1.0)
        scores = scores + np.sqrt(_UNCERTAINTY * np.log(round_number) / known["last"])
        preferred = np.percentile(seconds, self._percentile)
        slow = seconds > preferred
        ratio = np.where(slow, preferred / np.where(slow, seconds, 1.0), 1.0)
        return scores * ratio**self._penalty
