"""Tiers after DTFL: the published rule by hand, what it learns from a clock, and its bugs avoided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cut_offers import (
    MEMORY,
    RATES,
    cohort_of,
    given_cuts,
    menu_of,
    pricing_of,
    record_of,
    scheduled,
)
from fedray.clock import close_round
from fedray.errors import PolicyError
from fedray.policy import Pace
from fedray.policy_loading import load_policy
from fedray.trips import Trips

# Blocks below the cut train against a head there; cuts 1, 2 and 3 are the tiers.
TIERS = menu_of(ranks=(2,), local_loss=(True,), whole=False)
GRADIENT = menu_of(ranks=(2,), whole=False)


def learnt(seconds, *, last=1, up_bps=800.0):
    """What is known of clients 0, 1, ...: seconds of compute at their last tier."""
    return {
        "clients": {
            k: {"last": last, "seconds": {last: own}, "link": (up_bps, 800.0, 0.1)}
            for k, own in enumerate(seconds)
        }
    }


def test_a_client_not_seen_yet_gets_the_smallest_part_that_fits():
    assert given_cuts(scheduled("dtfl", cohort_of([500, 500, 100], [1.0, 1e9, 1.0]), TIERS)) == [1, 1, None]


def test_the_rule_by_hand():
    """Compute of 105, 205 and 305 FLOPs a step; 200 bytes up in 2 s; the server takes 12, 8 and 4 s.

    Client 0 took 1.05 s at tier 1: T_client = 3.05, 4.05, 5.05 and T_server = 14, 10, 6, so T = 14, 10, 6.05.
    Client 1 took 4.2 s there: T_client = 6.2, 10.2, 14.2, T_server = 14, 10, 6, so T = 14, 10.2, 14.2.
    """
    cohort = cohort_of([500, 500])
    # T_max = max(6.05, 10.2): the deepest tier within 10.2 is 3 for client 0 and 2 for client 1.
    assert given_cuts(scheduled("dtfl", cohort, TIERS, state=learnt([1.05, 4.2]))) == [3, 2]
    # Alone client 0 would take its own best, and a slower third client lets client 1 go deeper.
    assert given_cuts(scheduled("dtfl", cohort_of([500]), TIERS, state=learnt([1.05]))) == [3]
    # Client 2 took 42 s: T = 44, 84, 124, so T_max = 44 and client 1's tier 3 at 14.2 is in time.
    third = scheduled("dtfl", cohort_of([500] * 3), TIERS, state=learnt([1.05, 4.2, 42.0]))
    assert given_cuts(third) == [3, 3, 1]


def test_the_last_tier_is_not_dropped():
    # So slow a server that only the deepest tier is quick; a loop that stops before the last gives 2.
    pricing = pricing_of(flops_per_s=1.0)
    schedule = scheduled("dtfl", cohort_of([500]), TIERS, state=learnt([1.05]), pricing=pricing)
    assert given_cuts(schedule) == [3]


def test_a_tier_that_does_not_fit_is_none():
    # 1.02 of 124 bytes at tier 2, of 136 at tier 3.
    schedule = scheduled("dtfl", cohort_of([130, 130]), TIERS, state=learnt([1.05, 4.2]))
    assert given_cuts(schedule) == [2, 2]


def test_where_a_gradient_comes_down_the_server_is_waited_for():
    """Both ways 4 s; T = compute + 4 + server: for 1.05 s 17.05, 14.05, 11.05, for 21 s 37, 57, 77."""
    schedule = scheduled("dtfl", cohort_of([500, 500]), GRADIENT, state=learnt([1.05, 21.0]))
    assert given_cuts(schedule) == [3, 1]


def test_cuts_with_a_local_loss_are_the_tiers_where_there_are_both():
    both = menu_of(ranks=(2,), local_loss=(False, True))
    schedule = scheduled("dtfl", cohort_of([500, 500]), both, state=learnt([1.05, 4.2]))
    assert all(entry.local_loss for entry in schedule.decision.assignments)
    assert given_cuts(schedule) == [3, 2]


def test_compute_is_smoothed_with_span_2_at_its_own_tier():
    # 4 s, then 7 s at tier 1: 4 / 3 + 2 * 7 / 3 = 6; the 30 s at tier 2 lie in between and apart.
    policy = load_policy("dtfl")
    state = {"clients": {5: {"last": 1, "seconds": {}, "link": (800.0, 800.0, 0.1)}}}
    # Links: 200 bytes up, 20 + 30 + 50 down, 3 messages: 2 + 1 + 0.3 s. 1.5 s were waited for the server.
    columns = {
        "waiting_seconds": 1.5,
        "predicted_up_bytes": 50,
        "predicted_boundary_up_bytes": 150,
        "predicted_down_bytes": 20,
        "provision_bytes": 30,
        "predicted_boundary_down_bytes": 50,
        "num_messages": 1,
    }
    for cut, seconds in ((1, 4), (2, 30), (1, 7)):
        record = record_of(5, cut=cut, virtual_seconds=seconds + 4.8, **columns)
        state = policy.observe([record], state)
    assert state["clients"][5]["seconds"] == pytest.approx({1: 6, 2: 30})


@pytest.mark.parametrize("columns", [{"outcome": "late"}, {"cut": None}])
def test_nothing_is_learnt_from_who_did_not_finish_or_had_no_cut(columns):
    state = learnt([4.0])
    assert load_policy("dtfl").observe([record_of(0, virtual_seconds=1e9, **columns)], state) == state


@pytest.mark.parametrize("menu", [TIERS, GRADIENT])
def test_what_it_learns_of_a_real_round_is_the_clients_compute(menu):
    cohort, pricing = cohort_of([500] * 4, [20.0, 50.0, 100.0, 1000.0]), pricing_of(min_riders=2)
    policy = load_policy("dtfl")
    schedule = scheduled("dtfl", cohort, menu, pricing=pricing)
    terms = schedule.terms
    closed = close_round(
        Trips(
            client_ids=cohort.client_ids,
            device=cohort.device,
            fits=np.ones(4, bool),
            compute_seconds=terms.compute_seconds,
            up_bytes=terms.up_bytes,
            down_bytes=terms.down_bytes,
            provision_bytes=terms.provision_bytes,
            riders=terms.riders,
            server=pricing.server,
        ),
        Pace(),
    )
    assert closed.waiting_seconds.max() > 1
    records = [
        record_of(
            k,
            virtual_seconds=float(closed.client_seconds[k]),
            waiting_seconds=float(closed.waiting_seconds[k]),
            predicted_up_bytes=int(terms.up_bytes[k]),
            predicted_down_bytes=int(terms.down_bytes[k]),
            provision_bytes=int(closed.provision_bytes[k]),
            predicted_boundary_up_bytes=int(terms.boundary_up_bytes[k]),
            predicted_boundary_down_bytes=int(terms.boundary_down_bytes[k]),
            num_messages=int(closed.num_messages[k]),
        )
        for k in range(4)
    ]
    after = policy.observe(records, schedule.state)["clients"]
    assert [after[k]["seconds"][1] for k in range(4)] == pytest.approx(terms.compute_seconds.tolist())
    # Two steps of 105 FLOPs.
    assert terms.compute_seconds.tolist() == pytest.approx([10.5, 4.2, 2.1, 0.21])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(MEMORY, RATES, st.one_of(st.none(), st.floats(0.1, 100))), min_size=1, max_size=5),
    st.sampled_from([TIERS, GRADIENT]),
)
def test_nobody_gets_what_does_not_fit_and_equal_clients_get_equal_tiers(clients, menu):
    twice = [*clients, *clients]
    state = {
        "clients": {
            k: {"last": 1, "seconds": {1: own}, "link": (800.0, 800.0, 0.1)}
            for k, (_, _, own) in enumerate(twice)
            if own is not None
        }
    }
    cohort = cohort_of([m for m, _, _ in twice], [r for _, r, _ in twice])
    cuts = given_cuts(scheduled("dtfl", cohort, menu, state=state))
    assert cuts[: len(clients)] == cuts[len(clients) :]
    for (memory, _, own), cut in zip(twice, cuts, strict=True):
        assert (cut is None) == (memory < 1.02 * 112)
        if own is None and cut is not None:
            assert cut == 1


def test_a_menu_without_cuts_is_refused():
    with pytest.raises(PolicyError, match="dtfl chooses cuts, and none of the menu's 2 assignments has one"):
        scheduled("dtfl", cohort_of([500]), menu_of(cuts=()))
