"""Oort (2010.06081): clients whose data help most and who are quick, with some never tried mixed in.

Reproduced, after its published code: client i last took part in round L(i), with rows B_i and in t_i
seconds. In round R it scores

    U(i) = |B_i| sqrt(mean over B_i of loss^2)
    score(i) = (min(U(i), clip) - min U) / (clip - min U) + sqrt(0.1 ln R / L(i))
    score(i) *= (T / t_i)^2   if t_i > T

where clip is the 0.9 quantile of U, and T the preferred seconds: the 30th percentile of the t_i. A share of
the round, 0.9 and 0.98 times less each round until 0.3, goes to clients never tried. The others are drawn
with chances in proportion to their scores among those that reach 0.95 of the score that the last of them
would have if the best were taken. T's percentile rises by 5 when the sums of U of 20 rounds and of the 20
before differ by a tenth at most, and falls by 5 when they differ five times.

Not copied: a loss that is the last minibatch's (it is here the mean over all rows), and an index beyond the
end where few clients were tried. Constants differ between published codes; these are FedScale's but for the
0.95 (0.05 there). Our choices: T is over clients that were tried; those never tried are drawn with chances
in proportion to 1 / seconds of their largest offer that fits, among ``pool`` times as many drawn uniformly.
The paper's full text was not read, its numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.known import Known, learnt
from fedray.policy import State, View
from fedray.seeds import derive_seed, generator, weighted_sample

_CLIP, _UNCERTAINTY = 0.9, 0.1
_FALLS, _LEAST_EXPLORED = 0.98, 0.3
_STEP = 5.0  # of the percentile
_ALIKE, _UNLIKE = 0.1, 5.0


class Oort:
    """Its state has U, seconds and last round of each client that was tried, and the pacer's percentile."""

    observables = frozenset({"squared_loss"})

    def __init__(
        self,
        *,
        exploration: float = 0.9,
        penalty: float = 2.0,
        percentile: float = 30.0,
        cutoff: float = 0.95,
        pacer_rounds: int = 20,
        pool: int = 5,
    ) -> None:
        """The paper's parameters.

        Args:
            exploration: share of the first round's clients never tried.
            penalty: the exponent of T / t_i.
            percentile: of seconds, that T starts from; 100 or more is no limit.
            cutoff: share of a score that is still good enough.
            pacer_rounds: that the pacer sums.
            pool: clients never tried that are priced, for each that is wanted.

        Raises:
            PolicyError: an option is out of range.
        """
        shares = all(0 <= share <= 1 for share in (exploration, cutoff))
        if not shares or penalty < 0 or percentile < 0 or pacer_rounds < 1 or pool < 1:
            raise PolicyError(
                "oort: exploration and cutoff are 0 to 1, penalty and percentile 0 or more, pacer_rounds and "
                f"pool 1 or more; found {exploration:g}, {cutoff:g}, {penalty:g}, {percentile:g}, "
                f"{pacer_rounds} and {pool}."
            )
        self._exploration, self._penalty, self._percentile = exploration, penalty, percentile
        self._cutoff, self._pacer_rounds, self._pool = cutoff, pacer_rounds, pool

    def select(self, view: View, state: State) -> Ints:
        """The tried and the untried of this round."""
        count = min(view.clients_per_round, view.num_clients)
        known: Known = state.get("known", {})
        tried: Ints = known["ids"] if known else np.zeros(0, np.int64)
        able = view.may_be_asked(tried)
        share = max(self._exploration * _FALLS ** (view.round - 1), min(_LEAST_EXPLORED, self._exploration))
        wanted = min(count - int(count * share), int(able.sum()))
        untried = self._untried(view, tried, count - wanted)
        # Where few are left to try, the others take their places.
        wanted = min(count - len(untried), int(able.sum()))
        chosen = self._tried(view, known, state.get("percentile", self._percentile), wanted)
        found = np.concatenate([chosen, untried])
        return found if len(found) else view.sample()

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """What those whose update counted have told; and the pacer's turn."""
        fine = [record for record in records if record["outcome"] == "ok"]
        rows = np.array([record["num_rows"] for record in fine], np.float64)
        squares = np.array([record["statistics"]["squared_loss"][0] for record in fine], np.float64)
        utility = rows * np.sqrt(squares)
        sums = [*state.get("sums", []), float(utility.sum())]
        percentile, sums = self._paced(state.get("percentile", self._percentile), sums)
        known: Known = state.get("known", {})
        if fine:
            news: Known = {
                "ids": np.array([record["client_id"] for record in fine], np.int64),
                "utility": utility,
                "seconds": np.array([record["virtual_seconds"] for record in fine], np.float64),
                "last": np.array([record["round"] for record in fine], np.float64),
            }
            known = learnt(known, news)
        return {"known": known, "percentile": percentile, "sums": sums}

    def _tried(self, view: View, known: Known, percentile: float, wanted: int) -> Ints:
        if not wanted:
            return np.zeros(0, np.int64)
        able = view.may_be_asked(known["ids"])
        scores = self._scores(known, percentile, view.round)[able]
        least = self._cutoff * np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
        good = scores >= least
        # The one with the least utility scores 0, and may be needed.
        chances = np.maximum(scores[good], np.finfo(np.float64).tiny)
        ids = known["ids"][able][good]
        return weighted_sample(derive_seed(view.seed, "oort tried"), ids, chances, wanted)

    def _scores(self, known: Known, percentile: float, round_number: int) -> Floats:
        utility = known["utility"]
        clip, least = np.quantile(utility, _CLIP), utility.min()
        spread = clip - least
        scores: Floats = (np.minimum(utility, clip) - least) / (spread if spread > 0 else 1.0)
        scores = scores + np.sqrt(_UNCERTAINTY * np.log(round_number) / known["last"])
        if percentile >= 100:
            return scores
        preferred, seconds = np.percentile(known["seconds"], percentile), known["seconds"]
        slow = seconds > preferred
        ratio = np.where(slow, preferred / np.where(slow, seconds, 1.0), 1.0)
        return scores * ratio**self._penalty

    def _untried(self, view: View, tried: Ints, wanted: int) -> Ints:
        new = np.ones(view.num_clients, np.bool_)
        new[tried] = False
        ids = np.flatnonzero(new)
        ids = ids[view.may_be_asked(ids)]
        if not wanted or not len(ids):
            return np.zeros(0, np.int64)
        drawn = min(self._pool * wanted, len(ids))
        pool = np.sort(generator(view.seed, "oort pool").choice(ids, drawn, replace=False))
        offers = view.offers(pool)
        speed = 1 / offers.seconds_of(offers.best(offers.sum_of_ranks))
        return weighted_sample(derive_seed(view.seed, "oort untried"), pool, speed, wanted)

    def _paced(self, percentile: float, sums: list[float]) -> tuple[float, list[float]]:
        """The percentile and the rounds' sums from now on."""
        size = self._pacer_rounds
        if len(sums) < 2 * size:
            return percentile, sums
        before, last = sum(sums[:size]), sum(sums[size:])
        difference = abs(last - before)
        if difference <= _ALIKE * before:
            percentile = min(percentile + _STEP, 100.0)
        elif difference >= _UNLIKE * before:
            percentile = max(percentile - _STEP, self._percentile)
        return percentile, sums[size:]
