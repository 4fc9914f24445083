"""private_cut: leakage against time, within memory, on prices that can be worked out by hand."""

from dataclasses import replace

import pytest

from cut_offers import cohort_of, given_cuts, menu_of, scheduled, view_of
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy

# Leaks a half at 1, a third at 2, a quarter at 3.
MENU = menu_of(ranks=(2,), cuts=(1, 2, 3), whole=False)


def test_cuts_that_leak_too_much_or_lie_too_low_are_not_on_the_menu():
    def cuts(**options):
        return {entry.cut for entry in load_policy("private_cut", options).menu(view_of(MENU))}

    assert cuts() == {1, 2, 3}
    assert cuts(max_leakage=0.4) == {2, 3}
    assert cuts(min_cut=3) == {3}


def test_a_slow_client_keeps_few_blocks_and_a_high_price_of_leaking_makes_it_keep_more():
    # Of 5 FLOPs and 100 a block, a slow client's third block costs it 20 s a step more than its second.
    cohort = cohort_of([500, 500], [5.0, 1000.0])
    free = scheduled("private_cut", cohort, MENU, {"price": 0.0})
    dear = scheduled("private_cut", cohort, MENU, {"price": 1000.0})
    assert given_cuts(free)[0] == 1
    assert given_cuts(dear)[0] >= given_cuts(free)[0]
    assert given_cuts(dear)[1] == 3


def test_who_has_too_little_memory_for_a_private_cut_is_left_out():
    # One block takes 112 bytes, three 136.
    schedule = scheduled("private_cut", cohort_of([120, 500]), MENU, {"max_leakage": 0.3})
    assert given_cuts(schedule) == [None, 3]


def test_whole_models_send_no_states_and_are_always_allowed():
    menu = load_policy("private_cut", {"max_leakage": 0.0}).menu(view_of(menu_of(ranks=(2,), cuts=(1,))))
    assert {entry.split for entry in menu} == {False}


def test_what_cannot_be_decided_is_a_sentence():
    with pytest.raises(PolicyError, match=r"nobody has measured it; set leakage\.measure: true"):
        load_policy("private_cut").menu(replace(view_of(MENU), leakage={}))
    with pytest.raises(
        PolicyError, match=r"every cut of the menu leaks more than 0.1 or lies below min_cut 0: 0.50 at 1"
    ):
        load_policy("private_cut", {"max_leakage": 0.1}).menu(view_of(MENU))
    with pytest.raises(PolicyError, match="max_leakage is a share, min_cut and price are 0 or more; found 2"):
        load_policy("private_cut", {"max_leakage": 2.0})
