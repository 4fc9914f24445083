"""Cut and ranks by importance under a memory budget: menus and choices by hand, learning, laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cut_offers import (
    MEMORY,
    RATES,
    cohort_of,
    given_cuts,
    given_ranks,
    menu_of,
    record_of,
    scheduled,
    view_of,
)
from fedray.assignment import Assignment
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from fedray.policy_state import freeze_state, thaw_state
from fedray.testing.priced_model import BLOCKS

MENU = menu_of(ranks=(2, 8))
NOTHING = float("nan")
EVEN = menu_of(ranks=(2,), cuts=(3,), whole=False)[0]


def told(round_number, *saliences, entry=EVEN, num_steps=2):
    """Records of clients 0, 1, ... that trained this entry and report these values."""
    return [
        record_of(
            k,
            round=round_number,
            assignment=entry.to_json(),
            num_steps=num_steps,
            statistics={"salience": np.array(salience)},
        )
        for k, salience in enumerate(saliences)
    ]


def state_after(records, **options):
    """Round by round, as the engine has it observe them."""
    policy, state = load_policy("hsplitlora_style", options), {}
    for number in sorted({record["round"] for record in records}):
        state = policy.observe([record for record in records if record["round"] == number], state)
    return state


def test_the_menu_raises_the_clients_ranks_level_by_level_and_leaves_the_server_the_largest():
    menu = load_policy("hsplitlora_style", {"levels": 2}).menu(view_of(menu_of(cuts=(2,), whole=False)))
    assert [entry.adapter.ranks for entry in menu] == [
        (0, 0, 8, 8),
        (2, 0, 8, 8),
        (2, 2, 8, 8),
        (8, 2, 8, 8),
        (8, 8, 8, 8),
    ]
    assert {entry.cut for entry in menu} == {2}


def test_a_whole_model_and_a_tail_have_levels_of_their_own():
    policy = load_policy("hsplitlora_style", {"levels": 1})
    whole = policy.menu(view_of(menu_of(ranks=(2,), cuts=(1,))))
    assert [entry.adapter.ranks for entry in whole if not entry.split] == [(2, 2, 2, 2)]
    tailed = policy.menu(view_of(menu_of(ranks=(2, 8), cuts=(1,), tails=(1,), whole=False)))
    assert [entry.adapter.ranks for entry in tailed] == [(0, 8, 8, 0), (2, 8, 8, 2), (8, 8, 8, 8)]


def test_without_importance_a_client_gets_the_most_rank_that_fits_at_any_cut():
    """Peaks are 100 + 10 a block + 1 a unit of rank, times 1.02; importance is 1 everywhere.

    At 130 bytes cut 1 takes 8 (118), cut 2 only 2 + 2 (124), cut 3 nothing (130 x 1.02 is more).
    At 140 cut 2 takes 8 + 8 = 16 at 136, cut 3 2 + 2 + 2 = 6 at 136. At 176 it is 8 a block over all (172).
    """
    schedule = scheduled("hsplitlora_style", cohort_of([110, 130, 140, 176]), MENU)
    assert given_cuts(schedule) == [None, 1, 2, 4]
    assert given_ranks(schedule)[1:] == [(8,) * 4] * 3


def test_importance_decides_which_blocks_get_the_ranks():
    # Block 2 matters most, then 0: with 134 bytes for cut 3, one unit of rank 2 (132 x 1.02 = 134.64).
    records = told(1, [2.0, 1.0, 9.0, NOTHING])
    state = state_after(records)
    menu = menu_of(ranks=(2,), cuts=(3,), whole=False)
    schedule = scheduled(
        "hsplitlora_style", cohort_of([135, 138, 139]), menu, {"levels": 3}, state=state, history=records
    )
    assert given_ranks(schedule) == [(0, 0, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2)]


def test_importance_decides_the_cut():
    # 1.02 of 125 bytes: 8 units at cut 1 (118) or 2 + 2 at cut 2 (124), so 8 a against 2 a + 2 b.
    menu, cohort = menu_of(ranks=(2, 8), cuts=(1, 2), whole=False), cohort_of([128])
    for salience, cut in (([9.0, 1.0, 1.0, NOTHING], 1), ([1.0, 9.0, 1.0, NOTHING], 2)):
        records = told(1, salience)
        schedule = scheduled(
            "hsplitlora_style", cohort, menu, {"levels": 2}, state=state_after(records), history=records
        )
        assert given_cuts(schedule) == [cut]


def test_importance_is_per_step_and_unit_of_rank_and_a_mean_over_who_told_something():
    # (8, 12, 4) / 2 steps / rank 2 = (2, 3, 1) and (4, -, -) / 2 / 2 = (1, -, -).
    state = state_after(told(1, [8.0, 12.0, 4.0, NOTHING], [4.0, NOTHING, NOTHING, NOTHING]))
    assert state["importance"].tolist() == pytest.approx([1.5, 3, 1, np.nan], nan_ok=True)


def test_importance_is_mixed_with_its_history():
    records = [*told(1, [4.0, 4.0, NOTHING, NOTHING]), *told(2, [12.0, NOTHING, 8.0, NOTHING])]
    state = state_after(records, history=0.75)
    # 3 / 4 * 1 + 1 / 4 * 3; block 1 keeps what it was, block 2 is new.
    assert state["importance"].tolist() == pytest.approx([1.5, 1, 2, np.nan], nan_ok=True)


def test_the_split_is_redone_only_when_importance_moved_by_more_than_the_threshold():
    policy = load_policy("hsplitlora_style", {"history": 0.0, "threshold": 0.3})
    first = told(1, [4.0, 4.0, 4.0, 4.0])
    near = told(2, [5.0, 3.0, 4.0, 4.0])  # 1.25 and 0.75 of the mean: moved by 0.25
    far = told(2, [8.0, 2.0, 3.0, 3.0])  # 2 of the mean
    menus = [policy.menu(view_of(MENU, records)) for records in ([], first, first + near, first + far)]
    assert menus[0] == menus[1] == menus[2]
    assert menus[3] != menus[2]
    states = [state_after(records, history=0.0, threshold=0.3) for records in (first, first + near)]
    assert states[0]["settled"].tolist() == states[1]["settled"].tolist()
    assert states[0]["importance"].tolist() != states[1]["importance"].tolist()


def test_clients_that_told_nothing_change_nothing():
    state = state_after(told(1, [4.0, 4.0, 4.0, 4.0]))
    assert load_policy("hsplitlora_style").observe([record_of(0)], state) is state


def test_it_asks_for_salience_and_its_state_survives_a_checkpoint():
    assert load_policy("hsplitlora_style").observables == ("salience",)
    state = state_after(told(1, [2.0, 1.0, 9.0, NOTHING]))
    thawed = thaw_state(*freeze_state(state))
    assert all(np.array_equal(thawed[name], state[name], equal_nan=True) for name in state)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(MEMORY, RATES), min_size=1, max_size=4),
    st.lists(st.floats(0.1, 10), min_size=BLOCKS, max_size=BLOCKS),
)
def test_nobody_gets_what_does_not_fit_and_equal_clients_get_equal_offers(clients, salience):
    twice = [*clients, *clients]
    records = told(1, salience)
    cohort = cohort_of([m for m, _ in twice], [r for _, r in twice])
    schedule = scheduled("hsplitlora_style", cohort, MENU, state=state_after(records), history=records)
    given = schedule.decision.assignments
    assert given[: len(clients)] == given[len(clients) :]
    for (memory, _), entry in zip(twice, given, strict=True):
        # The least on its menu is a cut of 1 without rank.
        assert (entry is None) == (memory < 1.02 * 110)
        assert entry is None or isinstance(entry, Assignment)


@pytest.mark.parametrize("menu", [menu_of(cuts=()), menu_of(ranks=(), head_only=True)])
def test_a_menu_without_cuts_or_ranks_is_refused(menu):
    with pytest.raises(PolicyError, match=r"none has a cut or none has ranks; give menu.cuts and menu.ranks"):
        scheduled("hsplitlora_style", cohort_of([200]), menu)


@pytest.mark.parametrize("options", [{"history": 1.0}, {"threshold": -1.0}, {"levels": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PolicyError, match=f"found .*{next(iter(options.values()))}"):
        load_policy("hsplitlora_style", options)
