"""FedCS (1804.08333): as many clients as are done by a deadline, those that cost least time first.

Reproduced: of randomly drawn candidates, whose times are asked, the one is added again and again that
prolongs the round least, as long as the round ends in time. Updates are computed side by side and sent one
after the other; what starts clients goes out to all at once and takes as long as its slowest receiver. With
Theta the time until the last update so far has been sent, candidate k prolongs the round by

    T_down(S + k) - T_down(S) + t_up(k) + max(0, t_update(k) - Theta)

Our choices: times are those of a client's largest offer that fits; selecting and aggregating take none;
whoever is not taken is not looked at again; never more are taken than a round asks for; and if nobody is in
time, the candidate that takes least. In fedray's clock every client has a link of its own, and unless the
server's is short (``server_link``) the round ends sooner than FedCS reckons. Published numbers are not
checked.
"""

import numpy as np

from fedray.cost import Floats, Ints
from fedray.errors import PolicyError
from fedray.policy import LEAVE_OUT, View


def select(view: View, *, deadline_seconds: float, candidates: int | None = None) -> Ints:
    """Who is done in time.

    Args:
        view: of the round.
        deadline_seconds: that a round may take.
        candidates: that are asked for their times; four times what a round asks for if absent.

    Raises:
        PolicyError: an option is out of range.
    """
    if not deadline_seconds > 0 or (candidates is not None and candidates < 1):
        raise PolicyError(
            f"fedcs: deadline_seconds is above 0 and candidates 1 or more; found {deadline_seconds:g} and "
            f"{candidates}."
        )
    ids = view.sample(4 * view.clients_per_round if candidates is None else candidates)
    down, update, up, able = _times(view, ids)
    if not able.any():
        return ids[: view.clients_per_round]  # nothing fits them, and the round leaves them out
    chosen: list[int] = []
    distribution, elapsed = 0.0, 0.0
    left = able.copy()
    while left.any() and len(chosen) < view.clients_per_round:
        longer = np.maximum(down - distribution, 0) + up + np.maximum(update - elapsed, 0)
        best = int(np.where(left, longer, np.inf).argmin())
        left[best] = False
        sent = elapsed + up[best] + max(update[best] - elapsed, 0.0)
        if max(distribution, down[best]) + sent <= deadline_seconds:
            distribution, elapsed = max(distribution, down[best]), sent
            chosen.append(best)
    if not chosen:
        chosen = [int(np.where(able, down + update + up, np.inf).argmin())]
    return np.sort(ids[chosen])


def _times(view: View, ids: Ints) -> tuple[Floats, Floats, Floats, Ints]:
    """Seconds of each for receiving, computing and sending, and whether anything fits it, [ids]."""
    device, offers = view.cohort(ids).device, view.offers(ids)
    choice = offers.best(offers.sum_of_ranks)
    at = np.maximum(choice, 0), np.arange(len(ids))
    down = device.rtt_seconds + (offers.down_bytes[at] + offers.provision_bytes[at]) * 8 / device.down_bps
    up = device.rtt_seconds + offers.up_bytes[at] * 8 / device.up_bps
    return down, offers.virtual_seconds[at] - down - up, up, choice != LEAVE_OUT
