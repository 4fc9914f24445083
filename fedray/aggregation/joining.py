"""How updates of several versions join one state: FedBuff's and FedAsync's sums, over other rules.

With x the state, D_k an update against an older version, w_k its weight, and c_k = mixing * s(staleness):

* normalizer ``goal``: ``x + sum w_k c_k D_k / sum w_k``. With equal weights it is FedBuff's division by
  the updates of the buffer (2106.06639); with one update a round and a rule that averages states it is
  FedAsync, ``(1 - c) x + c x_k`` (1903.03934).
* normalizer ``sum``: ``x + sum w_k c_k D_k / sum w_k c_k``, which is FedScale's.

What a staleness takes from an update goes to one that changed nothing, of weight ``w_k (1 - c_k)``: by law L1
that is the same as a smaller step, for means of factors as of products, entry by entry over who holds what.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fedray.adapter import Adapter
from fedray.aggregation.rule import Accumulator, Aggregation, untrained
from fedray.aggregation.server_optimizer import ServerStepped
from fedray.errors import ConfigError
from fedray.policy import Pace


def refuse_to_join(pace: Pace, rule: Aggregation) -> None:
    """Raises ConfigError for a rule whose sum means nothing over updates of several versions."""
    if not pace.joins:
        return
    summing = rule.rule if isinstance(rule, ServerStepped) else rule
    why = None
    if summing.moves_base:
        why = "moves the frozen weights, which clients of several versions would have to share"
    elif "L1" in summing.breaks:
        why = "changes the state even where nothing was trained (it breaks L1)"
    elif "L3" in summing.breaks:
        why = "weighs updates by itself (it breaks L3), and pace would weigh them by their staleness"
    if why is not None:
        raise ConfigError(
            f"pace.late: join sums updates of several versions, and aggregation {rule.name!r} {why}; choose "
            "factor_mean or coverage_mean, or pace.late: drop."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """An update as it joins a state that others have moved since.

    Attributes:
        delta: what its client changed.
        sent: what that is a delta against.
        weight: beside other updates.
        staleness: versions of the state since what was sent.
        sent_now: what its client would be sent of the newest state.
    """

    delta: Adapter
    sent: Adapter
    weight: float
    staleness: int
    sent_now: Callable[[], Adapter]


@torch.no_grad()
def join(total: Accumulator, rule: Aggregation, pace: Pace, update: Joined) -> None:
    """Add an update to the sum of a round, which is on top of the newest state."""
    share = pace.mixing * pace.staleness.weight(update.staleness)
    delta = update.delta
    if rule.averages_states and update.staleness:
        delta = _against(update.sent_now(), update.sent, delta)
    total.add(delta, update.sent, update.weight * share)
    if pace.normalizer == "goal" and share < 1:
        now = update.sent_now()
        total.add(untrained(now), now, update.weight * (1 - share))


def _against(now: Adapter, sent: Adapter, delta: Adapter) -> Adapter:
    """The same with head and weights, which every rule sums as deltas, ending where the client ended."""
    head, weights = (
        {name: tensor + (then[name] - current[name]) for name, tensor in own.items()}
        for own, then, current in (
            (delta.head, sent.head, now.head),
            (delta.weights, sent.weights, now.weights),
        )
    )
    return replace(delta, head=head, weights=weights)
