"""Everybody alike: clients drawn uniformly without replacement, as in FedAvg (1602.05629)."""

from fedray.cost import Ints
from fedray.policy import View


def select(view: View, *, online: bool = False) -> Ints:
    """So many as a round asks for.

    Args:
        view: of the round.
        online: ask only those who are online.
    """
    return view.sample(online=online)
