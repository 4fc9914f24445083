"""One cut for everybody by latency and a bound's penalty on deep client parts: by hand, laws, failures."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cut_offers import MEMORY, RATES, cohort_of, given_cuts, given_ranks, menu_of, pricing_of, scheduled
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from fedray.scheduler import decide, price_menu

MENU = menu_of(ranks=(2,))
RARELY = {"aggregation_interval": 2, "drift": 0.2, "noise": 0.0}


def test_averaged_every_round_only_the_latency_counts():
    """The slowest client decides: at 100 FLOP/s 2 x 105, 205 and 305 FLOPs take 2.1, 4.1 and 6.1 s.

    The server takes 12, 8 and 4 s, links are alike: 14.1, 12.1 and 10.1 s. At 20 FLOP/s it is 22.5, 28.5 and
    34.5 s.
    """
    assert given_cuts(scheduled("adaptsfl_style", cohort_of([500] * 2, [100.0, 1000.0]), MENU)) == [3, 3]
    assert given_cuts(scheduled("adaptsfl_style", cohort_of([500] * 2, [20.0, 1000.0]), MENU)) == [1, 1]


def test_a_deep_client_part_that_is_averaged_rarely_takes_more_rounds():
    """Client parts of 1, 2 and 3 of 4 blocks; 0.2 x I^2 x share with I = 2 is 0.2, 0.4 and 0.6.

    Seconds are compute + server + 4.4 s of links + the update's 0.2 s and 16 bits a block at 800 bps a way,
    these every other round: 18.72, 16.74 and 14.76. Over 0.8, 0.6 and 0.4 they are 23.4, 27.9 and 36.9; with
    drift 0.02 over 0.98, 0.96 and 0.94 they are 19.1, 17.4 and 15.7.
    """
    cohort = cohort_of([500] * 2)
    assert given_cuts(scheduled("adaptsfl_style", cohort, MENU, RARELY)) == [1, 1]
    assert given_cuts(scheduled("adaptsfl_style", cohort, MENU, RARELY | {"drift": 0.02})) == [3, 3]
    # The term is there only for I > 1.
    assert given_cuts(scheduled("adaptsfl_style", cohort, MENU, RARELY | {"aggregation_interval": 1})) == [
        3,
        3,
    ]


def test_what_is_frozen_below_the_cut_does_not_drift():
    # Only block 3, the server's, is trained.
    menu = menu_of(ranks=(2,), depths=(1,), whole=False)
    assert given_cuts(scheduled("adaptsfl_style", cohort_of([500] * 2), menu, RARELY)) == [3, 3]


def test_a_cut_that_fits_fewer_clients_than_another_is_not_taken():
    # 1.02 of 112, 124 and 136 bytes.
    schedule = scheduled("adaptsfl_style", cohort_of([500, 127, 100]), MENU)
    assert given_cuts(schedule) == [2, 2, None]


def test_within_the_cut_each_client_has_the_largest_ranks_that_fit():
    schedule = scheduled("adaptsfl_style", cohort_of([500, 150]), menu_of())
    assert given_cuts(schedule) == [3, 3]
    assert [ranks[0] for ranks in given_ranks(schedule)] == [8, 2]


def test_no_whole_model_is_given():
    pricing = pricing_of(flops_per_s=0.01)
    assert given_cuts(scheduled("adaptsfl_style", cohort_of([500], 1e6), MENU, pricing=pricing)) == [3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(MEMORY, RATES), min_size=1, max_size=5), st.integers(1, 3))
def test_all_have_one_cut_and_nobody_what_does_not_fit(clients, interval):
    cohort = cohort_of([m for m, _ in clients], [r for _, r in clients])
    options = {"aggregation_interval": interval, "drift": 0.01}
    schedule = scheduled("adaptsfl_style", cohort, menu_of(), options)
    cuts = given_cuts(schedule)
    assert len(set(cuts) - {None}) <= 1
    for (memory, _), cut in zip(clients, cuts, strict=True):
        assert (cut is None) == (memory < 1.02 * 112)
    again = scheduled("adaptsfl_style", cohort_of([m for m, _ in clients] * 2, [r for _, r in clients] * 2),
                      menu_of(), options)  # fmt: skip
    given = again.decision.assignments
    assert given[: len(clients)] == given[len(clients) :]


def test_a_target_that_no_cut_reaches_is_refused_with_what_to_change():
    options = {"aggregation_interval": 10, "drift": 0.05}
    with pytest.raises(
        PolicyError,
        match=r"no cut of \[1, 2, 3\] reaches the target with drift 0.05, noise 0.1 .* every 10 rounds",
    ):
        scheduled("adaptsfl_style", cohort_of([500]), MENU, options)


@pytest.mark.parametrize(
    "options", [{"aggregation_interval": 0}, {"averaging": -0.5}, {"drift": -1.0}, {"noise": 1.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PolicyError, match="averaging and drift are 0 or more, noise is 0 to below 1; found"):
        scheduled("adaptsfl_style", cohort_of([500]), MENU, options)


def test_two_options_that_say_what_the_interval_is_are_refused():
    with pytest.raises(PolicyError, match=r"aggregation_interval = 2 there is nothing for averaging"):
        load_policy("adaptsfl_style", {"aggregation_interval": 2, "averaging": 0.5})


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({}, 1),
        ({"aggregation_interval": 4}, 4),
        # Averaging is free: nothing is won by doing it rarely.
        ({"averaging": 0.0}, 1),
        # Seconds 1 + 1 / I over 1 - 0.01 I^2 (1 for I = 1): 2, 1.5625, 1.4652, 1.4881, 1.6.
        ({"averaging": 1.0, "drift": 0.01, "noise": 0.0}, 3),
        # A bound that I = 2 already breaks leaves I = 1, however dear averaging is.
        ({"averaging": 50.0, "drift": 0.25, "noise": 0.0}, 1),
    ],
)
def test_the_interval_is_as_given_or_trades_rounds_for_seconds(options, interval):
    assert load_policy("adaptsfl_style", options).aggregation_interval == interval


def test_between_two_averagings_the_cut_stays_and_after_one_it_is_chosen_anew():
    policy = load_policy("adaptsfl_style", {"aggregation_interval": 2, "drift": 0.0})
    pricing, state, cuts = pricing_of(), {}, []
    # The cut of slow clients is 1, of quick ones 3.
    for number, rate in ((1, 20.0), (2, 1000.0), (3, 1000.0), (4, 20.0), (5, 20.0)):
        cohort = replace(cohort_of([500] * 2, rate), round=number)
        schedule = decide(policy, cohort, price_menu(MENU, cohort, pricing), state, pricing, together=False)
        state = schedule.state
        cuts.append(given_cuts(schedule))
    assert cuts == [[1, 1], [1, 1], [3, 3], [3, 3], [1, 1]]
    # Whom the kept cut does not fit is left out, unless it fits nobody.
    for memory, expected in (([500, 130], [3, None]), ([130, 130], [2, 2])):
        cohort = replace(cohort_of(memory, 1000.0), round=4)
        offers = price_menu(MENU, cohort, pricing)
        schedule = decide(policy, cohort, offers, {"cut": 3}, pricing, together=False)
        assert given_cuts(schedule) == expected


def test_a_menu_without_cuts_is_refused():
    with pytest.raises(
        PolicyError, match="adaptsfl_style chooses cuts, and none of the menu's 2 assignments"
    ):
        scheduled("adaptsfl_style", cohort_of([500]), menu_of(cuts=()))
