"""DTFL (2312.05642): tiers are cuts, and a client gets the deepest that does not hold the round up.

Reproduced, from the paper's rule and its published scheduler: client k's compute at its last tier is smoothed
(exponential weights of span 2, over the rounds in which it had that tier) and carried to tier m by profiles;

    T_client(m) = profile_client(m) / profile_client(last) * smoothed + D(m) / link
    T_server(m) = D(m) / link + profile_server(m)
    T(m) = max(T_client(m), T_server(m)),   T_max = max over clients of min over tiers of T(m)

and each client gets the tier with most client-side blocks among those with T(m) <= T_max. A client not seen
yet gets the smallest client part. Profiles are the client's own priced offers, not one machine's constants;
no tier is skipped; and T_max is this round's, as in the paper (the code takes the round's before).

Tiers are the menu's cuts with ``local_loss``. If it has none, cuts with a gradient serve: nothing overlaps
then, and T(m) = T_client(m) + profile_server(m). Whole models are no tier and not given. Our choice: within a
tier the largest ranks that fit. Published numbers are not checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.cost import Floats, Ints
from fedray.policy import LEAVE_OUT, Bools, Cohort, Offers, State

RUNG = "definition"
PAPER = "2312.05642"
CHECKS = ("../tests/policies/test_dtfl.py",)

_NEWEST = 2 / (2 + 1)  # weight of the newest value under a span of 2


class Dtfl:
    """Learns how long clients compute at their tiers.

    Its state has, by client id, ``last`` (the cut of its last tier), ``link`` (up_bps, down_bps and
    rtt_seconds, as declared) and ``seconds`` (smoothed compute of a round, by cut).
    """

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Ints, State]:
        """One menu index per client, -1 where no tier fits."""
        offers.need_cuts("dtfl")
        tiers = _tiers(cohort, offers)
        clients = np.arange(len(cohort))
        estimate = np.full(tiers.shape, np.inf)  # [tiers, clients]
        known = dict(state.get("clients", {}))
        for k, client_id in enumerate(cohort.client_ids.tolist()):
            estimate[:, k] = _estimate(cohort, offers, tiers[:, k], k, known.get(client_id, {}))
        seen = np.isfinite(estimate).any(axis=0)
        longest = estimate.min(axis=0, initial=np.inf)[seen].max(initial=-np.inf)
        # Tiers are in order of depth: the last that is in time, and the first that fits a newcomer.
        deepest = len(tiers) - 1 - (estimate <= longest)[::-1].argmax(axis=0)
        smallest = (tiers != LEAVE_OUT).argmax(axis=0)
        choice = tiers[np.where(seen, deepest, smallest), clients]
        device = cohort.device
        for k, client_id in enumerate(cohort.client_ids.tolist()):
            if choice[k] != LEAVE_OUT:
                links = (device.up_bps[k], device.down_bps[k], device.rtt_seconds[k])
                known[client_id] = {
                    "seconds": dict(known.get(client_id, {}).get("seconds", {})),
                    "last": offers.menu[choice[k]].cut,
                    "link": tuple(map(float, links)),
                }
        return choice, {"clients": known}

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Compute at the tier, of those who finished: the round's seconds without links and waiting."""
        known = dict(state.get("clients", {}))
        for record in records:
            if record["outcome"] != "ok" or record["cut"] is None:
                continue
            client, cut = known[record["client_id"]], record["cut"]
            computed = (
                record["virtual_seconds"] - record["waiting_seconds"] - _on_links(record, client["link"])
            )
            before = client["seconds"].get(cut, computed)
            smoothed = (1 - _NEWEST) * before + _NEWEST * computed
            known[record["client_id"]] = {**client, "seconds": {**client["seconds"], cut: smoothed}}
        return {"clients": known}


def _tiers(cohort: Cohort, offers: Offers) -> Ints:
    """Menu indices, [tiers, clients], shallowest first: of each cut what fits with most ranks, or -1."""
    local_loss = np.array([entry.local_loss for entry in offers.menu])
    allowed: Bools = local_loss if local_loss.any() else offers.has_cut
    cuts = np.unique(offers.cut[allowed])
    rows = [offers.best(offers.sum_of_ranks, among=(allowed & (offers.cut == cut))[:, None]) for cut in cuts]
    return np.stack(rows)


def _estimate(cohort: Cohort, offers: Offers, tiers: Ints, k: int, learnt: Mapping[str, Any]) -> Floats:
    """T(m) of one client, [tiers]: infinite where a tier does not fit, and where nothing was learnt yet."""
    seconds = np.full(len(tiers), np.inf)
    fitting = np.flatnonzero(tiers != LEAVE_OUT)
    rows = tiers[fitting]
    cuts = offers.cut[rows]
    last = learnt.get("last")
    if last not in learnt.get("seconds", {}) or last not in cuts:
        return seconds
    profile = offers.compute_seconds[rows, k]
    own = profile[cuts == last][0]
    device = cohort.device
    link = offers.boundary_up_bytes[rows, k] * 8 / device.up_bps[k]
    link = link + offers.boundary_down_bytes[rows, k] * 8 / device.down_bps[k]
    # A tier at which the client computes nothing has nothing that could be carried over.
    client = (profile / own * learnt["seconds"][last] if own > 0 else profile) + link
    server = offers.server_seconds[rows, k]
    waits = np.array([offers.menu[row].gradient_comes_down or offers.menu[row].tail > 0 for row in rows])
    seconds[fitting] = np.where(waits, client + server, np.maximum(client, link + server))
    return seconds


def _on_links(record: Mapping[str, Any], link: tuple[float, float, float]) -> float:
    """Seconds of a finished trip in which bytes moved, or were waited for: one round trip a message."""
    up_bps, down_bps, rtt_seconds = link
    up = record["predicted_up_bytes"] + record["predicted_boundary_up_bytes"]
    down = (
        record["predicted_down_bytes"] + record["provision_bytes"] + record["predicted_boundary_down_bytes"]
    )
    seconds: float = (record["num_messages"] + 2) * rtt_seconds + up * 8 / up_bps + down * 8 / down_bps
    return seconds
