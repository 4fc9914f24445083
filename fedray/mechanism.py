"""Differential privacy of a client as a whole: what is promised, and what of it rounds have used up.

Neighbours are two fleets that differ in one client. With C the norm that every update is cut to and z the
noise multiplier, noise of standard deviation z C is added

* centrally to the sum of the updates, before it is divided by a number that depends on nobody's data. A
  client that is drawn by lot with chance q (selection ``poisson``) is there or not, so the sum moves by C at
  most: the sampled Gaussian mechanism. A cohort of a fixed size q N has another client in its place, which
  moves the sum by 2 C: the Gaussian mechanism of multiplier z / 2 under sampling without replacement.
* locally to each update before it is sent. Two updates are 2 C apart at most: multiplier z / 2, once for
  every update that a client sends, and no sampling, for the server knows whose it is.

`dp_accounting` composes the rounds by their Renyi divergences (1908.10530, 1808.00087). It takes a second to
import, so only who protects does.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Literal, assert_never

Sampling = Literal["poisson", "fixed_size"]
Where = Literal["central", "local"]

# At the rates that rounds have dp_accounting cannot sum the sampled Gaussian's divergences of its usual
# fractional orders, and leaves them out.
_ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512)
# A late update was sent, and the server may have it.
_SENT = frozenset({"ok", "late"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CutNoise:
    """What a client does to hidden states before they cross its cut, token by token.

    Each vector is cut to the norm C, and noise of standard deviation z C is added to every entry. Neighbours
    are two data sets of one client that differ in one row, which is replaced by another of as many tokens.
    Each of its tokens moves by 2 C at most: the local Gaussian mechanism of multiplier z / 2, once in every
    step that sends the row. Covered are its hidden states that go up at a cut. How long it is, its label,
    gradients that cross and the update of the client's own side are not; nor is what that side has learnt of
    it, which shows in later hidden states of other rows, too: below a frozen bottom there is none of that.

    Attributes:
        clip_norm: C; ``noise_multiplier`` is z, and 0 cuts alone.
    """

    clip_norm: float
    noise_multiplier: float

    def epsilon(self, tokens: int, times_sent: int, delta: float) -> float | None:
        """What of one row's privacy has been used up; None without noise, where there is no bound.

        As many Gaussian mechanisms as tokens were sent are together one, whose multiplier is smaller by the
        root of their number; its epsilon is exact (1805.06530, by `dp_accounting`).

        Args:
            tokens: of the client's longest row.
            times_sent: how often one row was sent so far.
            delta: of the promise.
        """
        if not self.noise_multiplier:
            return None
        sent = tokens * times_sent
        return _exact(self.noise_multiplier / 2 / sqrt(sent), delta) if sent else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What is done to every update.

    Attributes:
        clip_norm: C; ``noise_multiplier`` is z.
        delta: of the promise.
        sampling: how clients are drawn, where that counts: for ``central``.
    """

    where: Where
    clip_norm: float
    noise_multiplier: float
    delta: float
    sampling: Sampling = "fixed_size"

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise on every entry."""
        return self.clip_norm * self.noise_multiplier

    def epsilon(self, rates: Iterable[float], most_updates: int) -> float | None:
        """What has been used up; None without noise, where there is no bound.

        Args:
            rates: the chance of a client to be asked, for every round so far.
            most_updates: that one client has sent so far.
        """
        if not self.noise_multiplier:
            return None
        match self.where:
            case "central":
                return _central(self, Counter(rates))
            case "local":
                return _local(self, most_updates) if most_updates else 0.0
            case _:
                assert_never(self.where)


@cache
def _exact(multiplier: float, delta: float) -> float:
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(multiplier, delta))


def most_updates(outcomes: Iterable[tuple[int, str]]) -> int:
    """How many one client has sent at most, by client and outcome of every client-round so far."""
    sent = Counter(client for client, outcome in outcomes if outcome in _SENT)
    return max(sent.values(), default=0)


def _central(mechanism: Mechanism, rates: Mapping[float, int]) -> float:
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant

    if mechanism.sampling == "poisson":
        accountant = RdpAccountant(_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
        gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    else:
        accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
        gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier / 2)
    for rate, count in rates.items():
        if mechanism.sampling == "poisson":
            accountant.compose(dp_event.PoissonSampledDpEvent(rate, gaussian), count)
        else:  # of the two sizes the quotient alone counts
            accountant.compose(dp_event.SampledWithoutReplacementDpEvent(1, rate, gaussian), count)
    return float(accountant.get_epsilon(mechanism.delta))


def _local(mechanism: Mechanism, count: int) -> float:
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_event.GaussianDpEvent(mechanism.noise_multiplier / 2), count)
    return float(accountant.get_epsilon(mechanism.delta))
