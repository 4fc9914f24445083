"""AdaptSFL-style (2403.13101): one cut for everybody and rounds between two averagings of what lies below it.

After R rounds with step size g and clients averaged every I rounds, the paper bounds the mean squared
gradient by

2 theta / (g R) + b g sum_j sigma_j^2 / N + 1{I > 1} 4 b^2 g^2 I^2 sum_{j <= cut} G_j^2

so a deep client part costs rounds unless it is averaged often. Setting the bound to the target and solving
for R leaves R proportional to 1 / (1 - noise / N - 1{I > 1} drift I^2 share), where N counts the round's
clients and share is that of the blocks that clients train below the cut. The policy minimises R times the
seconds of a round, which are the slowest client's on an otherwise idle server; what client parts take over
the links counts by 1 / I.

Our reading: blocks have equal gradients, so that G_j^2 becomes a count of blocks, and ``noise`` and ``drift``
hold the other constants of the bound, in shares of the target; the paper measures them. It alternates between
the best cut and the best I. Here I is set once for a run, since prices depend on it: as given, or by the same
trade for a client part of all blocks. The cut is chosen anew after each averaging and kept in between, where
another one would lose what clients had changed. The paper's full text was not read, its numbers are not
checked.
"""

import numpy as np

from fedray.assignment import Assignment, Lora
from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.policy import LEAVE_OUT, Cohort, Offers, State

_MOST_ROUNDS = 100

RUNG = "laws"
PAPER = "2403.13101"


class AdaptSFLStyle:
    """All have one cut, and within it the largest ranks that fit; -1 where the cut does not. No whole models.

    Cuts that fit fewer clients than another are not considered; of equals the shallowest is taken.
    """

    def __init__(
        self,
        *,
        aggregation_interval: int | None = None,
        averaging: float | None = None,
        drift: float = 0.05,
        noise: float = 0.1,
    ) -> None:
        """How to trade rounds for seconds.

        Args:
            aggregation_interval: rounds between two averagings below the cuts; 1 if absent, or the best one
                by ``averaging``, at most 100.
            averaging: seconds that client parts take over the links in a round in which they are averaged,
                as a share of its other seconds.
            drift: what the last term of the bound takes of the target with I = 1 and all blocks below the
                cut.
            noise: what its second term takes of it with one client.

        Raises:
            PolicyError: an option is out of range, or two of them say what the interval is.
        """
        if aggregation_interval is not None and averaging is not None:
            raise PolicyError(
                f"adaptsfl_style: with aggregation_interval = {aggregation_interval} there is nothing for "
                f"averaging = {averaging:g} to decide; drop the one or the other."
            )
        interval = 1 if aggregation_interval is None else aggregation_interval
        if interval < 1 or drift < 0 or not 0 <= noise < 1 or (averaging or 0) < 0:
            raise PolicyError(
                "adaptsfl_style: aggregation_interval is 1 or more, averaging and drift are 0 or more, noise "
                f"is 0 to below 1; found {interval}, {averaging or 0:g}, {drift:g} and {noise:g}."
            )
        self._drift, self._noise = drift, noise
        self.aggregation_interval = interval if averaging is None else self._best_interval(averaging)

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """One menu index per client; the state is the cut.

        Raises:
            PolicyError: the menu has no cut, or no cut reaches the target.
        """
        offers.need_cuts("adaptsfl_style")
        just_averaged = (cohort.round - 1) % self.aggregation_interval == 0
        if "cut" in state and not just_averaged:
            kept = _within(offers, state["cut"])
            if (kept != LEAVE_OUT).any():
                return kept, state
        cut = self._best_cut(cohort, offers)
        return _within(offers, cut), {"cut": cut}

    def _best_interval(self, averaging: float) -> int:
        intervals = np.arange(1, _MOST_ROUNDS + 1)
        left = self._left(intervals, np.ones(1), 1)
        rounds = np.where(left > 0, 1 / np.where(left > 0, left, 1.0), np.inf)
        return int(intervals[(rounds * (1 + averaging / intervals)).argmin()])

    def _best_cut(self, cohort: Cohort, offers: Offers) -> int:
        cuts = np.unique(offers.cut[offers.has_cut])
        rows = np.stack([_within(offers, cut) for cut in cuts.tolist()])  # [cuts, clients]
        given = rows != LEAVE_OUT
        served = given.sum(axis=1)
        own = self._seconds(cohort, offers)[rows, np.arange(len(cohort))]
        seconds = np.where(given, own, 0.0).max(axis=1)
        trained = np.array([_share_below(entry) for entry in offers.menu])
        share = np.where(given, trained[rows], 0.0).max(axis=1)
        left = self._left(np.array([self.aggregation_interval]), share, np.maximum(served, 1))
        able = (served == served.max()) & (left > 0)
        if not able.any():
            raise PolicyError(
                f"adaptsfl_style: no cut of {cuts.tolist()} reaches the target with drift {self._drift:g}, "
                f"noise {self._noise:g} and clients averaged every {self.aggregation_interval} rounds; lower "
                "aggregation_interval or drift, or offer shallower cuts."
            )
        until_target = np.where(able, seconds / np.where(able, left, 1.0), np.inf)
        return int(cuts[until_target.argmin()])

    def _left(self, intervals: Ints, share: Floats, served: Ints | int) -> Floats:
        """What the bound leaves of the target for the first term, which falls with the rounds."""
        drifts = np.where(intervals > 1, self._drift * intervals**2 * share, 0.0)
        left: Floats = 1 - self._noise / served - drifts
        return left

    def _seconds(self, cohort: Cohort, offers: Offers) -> Floats:
        """Of a round on average, [menu, clients]: a client's part goes down and up once in I rounds."""
        down, up = 8 / cohort.device.down_bps, 8 / cohort.device.up_bps
        others = offers.virtual_seconds - offers.down_bytes * down - offers.up_bytes * up
        # It is as large on the way up as on the way down.
        return others + offers.down_bytes * (down + up) / self.aggregation_interval


def _within(offers: Offers, cut: int) -> Ints:
    """Each client's largest ranks at this cut, [clients]."""
    return offers.best(offers.sum_of_ranks, among=(offers.has_cut & (offers.cut == cut))[:, None])


def _share_below(entry: Assignment) -> float:
    """Of all blocks those below the cut that the client trains."""
    if not isinstance(entry.adapter, Lora):
        return 0.0
    ranks = entry.adapter.ranks
    return sum(rank > 0 for rank in ranks[: entry.cut]) / len(ranks)
