"""Each client for itself, with one chance for all: Poisson sampling, as in DP-FedAvg (1710.06963).

Reproduced: the sampling that the moments accountant of its Algorithm 1 counts on. A round asks
``clients_per_round`` on average, sometimes nobody. Published numbers are not checked.
"""

import numpy as np

from fedray.cost import Ints
from fedray.policy import View
from fedray.seeds import uniforms


def select(view: View) -> Ints:
    """Whoever draws less than ``clients_per_round`` over the number of clients, and may be asked."""
    everybody = np.arange(view.num_clients)
    chance = min(1.0, view.clients_per_round / view.num_clients)
    drawn = everybody[uniforms(view.seed, everybody)[:, 0] < chance]
    return drawn[view.may_be_asked(drawn)]
