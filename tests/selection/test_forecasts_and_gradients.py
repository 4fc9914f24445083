"""REFL by what clients foretell, PyramidFL-style by their gradients; numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from cut_offers import given_ranks, menu_of, scheduled
from fedray.errors import PolicyError
from fedray.policy import View
from fedray.policy_loading import load_policy
from fedray.scheduler import price_menu
from fedray.selection import load_selection
from fedray.testing.priced_model import Client, cohort_of, pricing_of

MENU = menu_of(ranks=(2,), depths=("all",), cuts=())
# When each of six clients goes offline, from now.
LEAVES = np.array([5.0, 15.0, 25.0, 8.0, 30.0, 12.0])
EXACT = {"accuracy": 1.0, "first_window_seconds": 10.0}


def view_of(clients, count, *, seed=0, leaves=LEAVES, number=1):
    def cohort(ids):
        return cohort_of([clients[k] for k in ids.tolist()], ids)

    def foretold(ids, start, end):
        asked.append((start, end))
        return leaves[ids] >= end

    asked = []
    view = View(
        round=number,
        seed=seed,
        num_clients=len(clients),
        clients_per_round=count,
        menu=MENU,
        num_rows=np.full(len(clients), 8),
        foretold=foretold,
        cohort_of=cohort,
        offers_of=lambda ids: price_menu(MENU, cohort(ids), pricing_of()),
    )
    return view, asked


def fleet(speeds):
    return [Client(memory_bytes=10**6, flops_per_s=speed) for speed in speeds]


SIX = fleet([100.0] * 6)


def chosen(name, view, state=None, options=None):
    ids, after = load_selection(name, options).select(view, state or {})
    return np.asarray(ids).tolist(), after


# REFL.


def test_refl_asks_first_who_stays_for_this_window_and_not_for_the_next():
    # For 10 s stay 1, 2, 4 and 5; of these 2 and 4 are there for the 10 s after them, too.
    thirds = set()
    for seed in range(30):
        view, asked = view_of(SIX, 3, seed=seed)
        ids, _ = chosen("refl", view, options=EXACT)
        assert set(ids[:2]) == {1, 5}
        assert asked == [(0, 10), (10, 20)]
        thirds.add(ids[2])
    # Who will be there later, and who would not even see this round's end, are drawn alike.
    assert thirds == {0, 2, 3, 4}


def test_refls_window_follows_how_long_rounds_last():
    # By hand: 0.75 * 30 + 0.25 * 10, then 0.75 * 50 + 0.25 * 25.
    selection = load_selection("refl", EXACT)
    _, state = selection.select(view_of(SIX, 2)[0], {})
    assert state["window"] == 10
    state = selection.observe([{"virtual_seconds": 30.0}, {"virtual_seconds": 20.0}], state)
    assert state["window"] == 25
    state = selection.observe([{"virtual_seconds": 50.0}], state)
    assert state["window"] == 43.75
    assert selection.observe([], state) == state
    view, asked = view_of(SIX, 2)
    selection.select(view, state)
    assert asked == [(0, 43.75), (43.75, 87.5)]


def test_refls_first_window_is_what_the_middle_client_takes():
    # 405 FLOP a step, two steps of 8 rows, links of 64 bit/s for 8 bytes each way: 3, 4 and 5 s.
    clients = [
        Client(memory_bytes=10**6, flops_per_s=speed, bps=64.0, rtt_seconds=0.0)
        for speed in (810.0, 405.0, 270.0)
    ]
    view, _ = view_of([*clients, Client(memory_bytes=1)], 2)
    assert chosen("refl", view, options={"accuracy": 1.0})[1]["window"] == pytest.approx(4.0)


def test_refls_forecasts_are_wrong_as_often_as_it_says():
    # All stay for ever. Who seems about to leave was right of the first window and wrong of the second: 0.09.
    count = 20_000
    view, _ = view_of(fleet([100.0] * count), 10, leaves=np.full(count, np.inf))
    refl = load_selection("refl", {"accuracy": 0.9})._select.__self__
    ids = np.arange(count)
    leaving = refl._foretold(view, ids, 0.0, 10.0) & ~refl._foretold(view, ids, 10.0, 10.0)
    assert leaving.mean() == pytest.approx(0.09, abs=0.01)


def test_refl_asks_for_forecasts_of_a_few_of_many():
    view, _ = view_of(fleet([100.0] * 5000), 4, leaves=np.full(5000, 1.0))
    seen = []
    view = replace(view, foretold=lambda ids, start, end: seen.append(len(ids)) or ids >= 0)
    chosen("refl", view, options=EXACT)
    assert seen == [40, 40]


# PyramidFL-style.


def told(client_id, norms, *, rows=8, seconds=10.0, steps=1, number=1, outcome="ok"):
    return {
        "client_id": client_id, "round": number, "outcome": outcome, "num_rows": rows, "num_steps": steps,
        "virtual_seconds": seconds, "statistics": {"grad_norm": np.array(norms)},
    }  # fmt: skip


def test_the_utility_is_rows_times_the_norm_of_a_steps_gradient():
    # Two steps: 3 and 4 a step have the norm 5, times 10 rows. A block without a norm is not trained.
    records = [told(3, [6.0, 8.0, np.nan], rows=10, steps=2), told(1, [1.0], outcome="late")]
    state = load_selection("pyramidfl_style").observe(records, {})
    assert state["known"]["ids"].tolist() == [3]
    assert state["known"]["utility"].tolist() == [50.0]


def test_scores_are_worked_by_hand():
    known = {
        "ids": np.arange(3),
        "utility": np.array([10.0, 20.0, 30.0]),
        "seconds": np.array([10.0, 20.0, 40.0]),
        "last": np.array([1.0, 2.0, 4.0]),
    }
    # Clipped at 28: 0, 10 and 18 of 18. T is 20 s; the last takes twice that, and has a quarter of its score.
    selection = load_selection("pyramidfl_style", {"percentile": 50})._select.__self__
    bonus = np.sqrt(0.1 * np.log(5) / np.array([1, 2, 4]))
    expected = (np.array([0, 10 / 18, 1.0]) + bonus) * [1, 1, 0.25]
    assert selection._scores(known, 5) == pytest.approx(expected)


def test_the_best_by_score_come_with_some_that_nobody_tried():
    selection = load_selection("pyramidfl_style", {"exploration": 0.5})
    state = selection.observe([told(k, [k + 1.0]) for k in range(3)], {})
    found = set()
    for seed in range(30):
        ids = selection.select(view_of(SIX, 2, seed=seed)[0], state)[0].tolist()
        assert ids[0] == 2
        found.add(ids[1])
    assert found == {3, 4, 5}
    # Where nobody is left to try, the best that were.
    state = selection.observe([told(k, [k + 1.0]) for k in range(6)], {})
    assert selection.select(view_of(SIX, 2)[0], state)[0].tolist() == [5, 4]


# Idle time.


def test_who_would_wait_for_the_slowest_trains_longer():
    # 405 FLOP a step and 2 steps an epoch; links take 2 s in all. An epoch takes 1, 2 and 5 s, T is 7.
    clients = [
        Client(memory_bytes=10**6, flops_per_s=speed, bps=64.0, rtt_seconds=0.0)
        for speed in (810.0, 405.0, 162.0)
    ]
    cohort = cohort_of(clients)
    schedule = scheduled("fill_idle_time", cohort, MENU)
    # 1 + floor((7 - 3) / 1), 1 + floor((7 - 4) / 2), and the slowest itself.
    assert [entry.num_epochs for entry in schedule.decision.assignments] == [5, 2, 1]
    schedule = scheduled("fill_idle_time", cohort, MENU, {"most_extra": 2})
    assert [entry.num_epochs for entry in schedule.decision.assignments] == [3, 2, 1]


def test_more_epochs_are_of_the_largest_offer_that_fits():
    # Rank 2 on all blocks needs 150.96 bytes with the margin, rank 8 175.44.
    clients = [Client(memory_bytes=memory, flops_per_s=100.0) for memory in (200, 160, 100)]
    clients[1] = replace(clients[1], flops_per_s=1000.0)
    schedule = scheduled("fill_idle_time", cohort_of(clients), menu_of(ranks=(2, 8), cuts=()))
    assert given_ranks(schedule) == [(8,) * 4, (2,) * 4, None]
    assert [entry and entry.num_epochs for entry in schedule.decision.assignments] == [1, 10, None]


def test_steps_that_are_fixed_leave_no_idle_time_to_fill():
    menu = menu_of(ranks=(2,), cuts=(), max_steps=3)
    with pytest.raises(PolicyError, match=r"training\.max_steps fixes their steps; drop it"):
        scheduled("fill_idle_time", cohort_of(SIX), menu)
    with pytest.raises(PolicyError, match=r"most_extra is 1 epoch or more, found 0"):
        load_policy("fill_idle_time", {"most_extra": 0})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("refl", {"accuracy": 1.5}, r"accuracy is 0 to 1, .* found 1\.5, 10 and None"),
        (
            "refl",
            {"first_window_seconds": 0},
            r"above 0 or absent; found 0\.9, 10 and 0",
        ),
        ("pyramidfl_style", {"percentile": 101}, r"percentile 0 to 100 and pool 1 or more; found"),
    ],
)
def test_options_out_of_range_are_said(name, options, message):
    with pytest.raises(PolicyError, match=message):
        load_selection(name, options)
