"""Each client keeps as many blocks as its hidden states must pass to give little enough away, and no more.

An idea of ours, after the trade-off that split learning's privacy papers describe: a deeper cut leaks less
(``view.leakage``, measured once by `fedray.attacks.inversion` with ``leakage.measure``) and costs the client
memory and time. Cuts that leak more than ``max_leakage`` are not given at all, a floor beside ``min_cut``; of
the others a client gets the one with least virtual time, stretched by ``price`` times its leakage. A whole
model sends no hidden states and leaks nothing here; what its update gives away is another matter.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import PolicyError
from fedray.policy import Cohort, Offers, View

RUNG = "laws"


class PrivateCut:
    """Leakage against time, within memory."""

    def __init__(self, *, max_leakage: float = 0.5, min_cut: int = 0, price: float = 1.0) -> None:
        """Args: ``max_leakage``: from 0 to 1; ``min_cut``: in blocks; ``price``: of leaking everything.

        A price of 1 makes a cut that leaks everything as dear as twice its time.
        """
        if not 0 <= max_leakage <= 1 or min_cut < 0 or price < 0:
            raise PolicyError(
                "private_cut: max_leakage is a share, min_cut and price are 0 or more; found "
                f"{max_leakage}, {min_cut}, {price}."
            )
        self._most, self._lowest, self._price = max_leakage, min_cut, price
        self._leakage: Mapping[int, float] = {}

    def menu(self, view: View) -> Sequence[Assignment]:
        """The whole models, and the cuts that leak little enough."""
        cuts = sorted({entry.cut for entry in view.menu if entry.split})
        if cuts and not view.leakage:
            raise PolicyError(
                "private_cut weighs what cuts give away, and nobody has measured it; set "
                "leakage.measure: true."
            )
        self._leakage = view.leakage
        allowed = [entry for entry in view.menu if not entry.split or self._is_private(entry.cut)]
        if not allowed:
            told = ", ".join(f"{view.leakage[cut]:.2f} at {cut}" for cut in cuts)
            raise PolicyError(
                f"private_cut: every cut of the menu leaks more than {self._most:g} or lies below min_cut "
                f"{self._lowest}: {told}; give deeper cuts, whole models, or raise max_leakage."
            )
        return allowed

    def assign(self, cohort: Cohort, offers: Offers) -> Ints:
        """The least virtual time, stretched by what is leaked; of equals the one with most ranks."""
        leaks = np.array([self._leakage[e.cut] if e.split else 0.0 for e in offers.menu])
        cost = offers.virtual_seconds * (1 + self._price * leaks[:, None])
        return offers.best(-cost)

    def _is_private(self, cut: int) -> bool:
        return cut >= self._lowest and self._leakage[cut] <= self._most
