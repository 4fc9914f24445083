"""Shipped selections on fleets small enough to work out by hand, and what all of them must do."""

from dataclasses import replace

import numpy as np
import pytest

from cut_offers import menu_of
from fedray.errors import PolicyError
from fedray.known import learnt, look_up
from fedray.policy import View
from fedray.policy_loading import load_policy
from fedray.scheduler import price_menu
from fedray.seeds import uniforms, weighted_sample
from fedray.selection import load_selection, selected_by
from fedray.testing import check_policy
from fedray.testing.priced_model import Client, cohort_of, pricing_of

MENU = menu_of(ranks=(2,), depths=("all",), cuts=())
NAMES = {
    "uniform": {},
    "power_of_choice": {},
    "tifl": {},
    "oort": {},
    "fedcs": {"deadline_seconds": 100.0},
    "refl": {},
    "pyramidfl_style": {},
}


def view_of(clients, count=2, *, round_number=1, seed=0):
    def cohort(ids):
        return cohort_of([clients[k] for k in ids.tolist()], ids)

    return View(
        round=round_number,
        seed=seed,
        num_clients=len(clients),
        clients_per_round=count,
        menu=MENU,
        num_rows=np.array([client.num_rows for client in clients]),
        cohort_of=cohort,
        offers_of=lambda ids: price_menu(MENU, cohort(ids), pricing_of()),
    )


def clients_of(**columns):
    count = len(next(iter(columns.values())))
    rows = [{name: values[k] for name, values in columns.items()} for k in range(count)]
    return [Client(memory_bytes=10**6, **row) for row in rows]


def record(client_id, *, outcome="ok", **columns):
    squared = columns.pop("squared_loss", 1.0)
    facts = {"round": 1, "client_id": client_id, "outcome": outcome, "loss": 1.0, "num_rows": 8}
    statistics = {"squared_loss": np.array([squared]), "grad_norm": np.array([squared])}
    facts |= {"virtual_seconds": 10.0, "num_steps": 1, "statistics": statistics}
    return facts | columns


def asked(name, view, state=None, options=None):
    ids, after = load_selection(name, NAMES[name] if options is None else options).select(view, state or {})
    return np.sort(ids).tolist(), after


def told(name, records, state=None, options=None):
    return load_selection(name, options).observe(records, state or {})


# What all of them must do.


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_chosen_who_may_not_be_asked(name):
    # By a trace these are online alone, or where rounds overlap the others are at work.
    view = replace(view_of(clients_of(num_rows=[8] * 20), count=4), may_be_asked=lambda ids: ids % 3 == 0)
    ids, state = asked(name, view)
    assert len(ids) == 4 or name == "tifl"
    assert all(client % 3 == 0 for client in ids)
    state = load_selection(name, NAMES[name]).observe([record(k) for k in range(12)], state)
    again, _ = asked(name, replace(view, round=2, seed=5), state)
    assert again
    assert all(client % 3 == 0 for client in again)


# What they are made of.


def test_numbers_are_those_of_splitmix64():
    # The first outputs from 1234567, as published with the generator's reference code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    expected = [(value >> 11) * 2.0**-53 for value in published]
    assert uniforms(1234567, np.arange(4))[:, 0].tolist() == expected
    assert uniforms(1234567, np.arange(2), 2).ravel().tolist() == expected
    assert uniforms(1234567, np.array([3]))[0, 0] == expected[3]


def test_samples_are_drawn_in_proportion_to_weights_and_weightless_ids_never():
    ids, weights = np.arange(3), np.array([3.0, 1.0, 0.0])
    first = [weighted_sample(seed, ids, weights, 1)[0] for seed in range(4000)]
    assert np.bincount(first, minlength=3)[0] / 4000 == pytest.approx(0.75, abs=0.02)
    assert sorted(weighted_sample(0, ids, weights, 5).tolist()) == [0, 1]


def test_what_is_learnt_replaces_what_was_known():
    known = learnt({}, {"ids": np.array([7, 2]), "loss": np.array([0.7, 0.2])})
    known = learnt(known, {"ids": np.array([5, 7, 5]), "loss": np.array([0.1, 0.9, 0.5])})
    assert known["ids"].tolist() == [2, 5, 7]
    assert look_up(known, "loss", np.array([7, 3, 5, 9]), -1.0).tolist() == [0.9, -1.0, 0.5, -1.0]
    assert look_up({}, "loss", np.array([1]), 4.0).tolist() == [4.0]


# Power of Choice.


def test_power_of_choice_asks_the_candidates_with_the_largest_losses_and_newcomers_first():
    view, options = view_of(clients_of(num_rows=[8] * 4)), {"candidates": 4}
    state = told("power_of_choice", [record(0, loss=0.5), record(1, loss=3.0), record(3, loss=1.0)])
    assert asked("power_of_choice", view, state, options)[0] == [1, 2]
    state = told("power_of_choice", [record(2, loss=0.1), record(0, outcome="late", loss=None)], state)
    assert asked("power_of_choice", view, state, options)[0] == [1, 3]


def test_candidates_of_power_of_choice_are_drawn_by_their_rows():
    # With one candidate that is the one asked: 9 of 10 rows are client 1's.
    fleet = clients_of(num_rows=[1, 9])
    found = [
        asked("power_of_choice", view_of(fleet, 1, seed=s), {}, {"candidates": 1})[0] for s in range(500)
    ]
    assert np.mean(found) == pytest.approx(0.9, abs=0.04)


# TiFL.


def test_tifl_asks_clients_of_one_tier_of_like_speed():
    fleet = clients_of(flops_per_s=[1.0, 100.0, 10.0, 101.0, 1.1, 11.0])
    found = {tuple(asked("tifl", view_of(fleet, seed=s), {}, {"num_tiers": 3})[0]) for s in range(40)}
    assert found == {(0, 4), (1, 3), (2, 5)}
    for tier, members in enumerate([[1, 3], [2, 5], [0, 4]]):
        options = {"num_tiers": 3, "probabilities": np.eye(3)[tier].tolist()}
        assert asked("tifl", view_of(fleet), {}, options)[0] == members


def test_tifl_weighs_tiers_by_their_losses_and_leaves_out_those_without_credits():
    fleet, options = clients_of(flops_per_s=[100.0, 10.0, 1.0]), {"num_tiers": 3, "interval": 1}
    _, state = asked("tifl", view_of(fleet, 1), {}, options)
    records = [record(0, loss=1.0), record(1, loss=3.0), record(2, loss=2.0)]
    # Of three tiers the worst has 3 of 6 chances, the next 2, the best 1.
    assert told("tifl", records, state, options)["chance"] == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    spent = {**state, "credits": np.array([1, 0, 1])}
    assert told("tifl", records, spent, options)["chance"] == pytest.approx([1 / 3, 0, 2 / 3])


def test_tifl_says_when_all_credits_are_spent():
    view, options = view_of(clients_of(flops_per_s=[1.0, 2.0])), {"num_tiers": 1, "credits_per_tier": 1}
    _, state = asked("tifl", view, {}, options)
    with pytest.raises(PolicyError, match=r"the 1 credits of every tier .* round 1; raise credits_per_tier"):
        asked("tifl", view, state, options)


def test_clients_that_nothing_fits_are_in_no_tier_of_tifl():
    fleet = [*clients_of(num_rows=[8, 8]), Client(memory_bytes=1)]
    _, state = asked("tifl", view_of(fleet), {}, {"num_tiers": 2})
    assert state["tier"].tolist() == [0, 1, -1]


# FedCS.


def test_fedcs_adds_who_prolongs_the_round_least_until_the_deadline():
    # Whole models of rank 2 on 4 blocks: 8 bytes each way. A step is 405 FLOP, 8 rows make 2 steps. Links of
    # 64 bit/s take 1 s for 8 bytes and no round trip, so that updates take 1, 2 and 3 s.
    fleet = clients_of(flops_per_s=[810.0, 405.0, 270.0], bps=[64.0] * 3, rtt_seconds=[0.0] * 3)
    offers = view_of(fleet).offers(np.arange(3))
    assert offers.virtual_seconds[0].tolist() == pytest.approx([3.0, 4.0, 5.0])
    # Received at 1, the first has sent after 1 + 1 more, the others right after it: 3, 4, 5.
    for deadline, chosen in ((2.9, [0]), (3.0, [0]), (4.0, [0, 1]), (5.0, [0, 1, 2])):
        options = {"deadline_seconds": deadline, "candidates": 3}
        assert asked("fedcs", view_of(fleet, 3), {}, options)[0] == chosen
    assert asked("fedcs", view_of(fleet, 2), {}, {"deadline_seconds": 9.0})[0] == [0, 1]


# Oort.


def test_oort_learns_the_utility_of_the_paper_from_rows_and_squared_losses():
    state = told("oort", [record(3, num_rows=10, squared_loss=4.0), record(1, outcome="dropped")])
    assert state["known"]["ids"].tolist() == [3]
    assert state["known"]["utility"].tolist() == [20.0]
    assert state["sums"] == [20.0]


def test_oort_scores_as_worked_by_hand():
    # U 10, 20, 30, clipped at the 0.9 quantile 28: (0, 10, 18) / 18. Rounds 1, 2, 4 of 5. T, the 50th
    # percentile, is 20 s, and the client of 40 s has (20 / 40)^2 of its score.
    known = {
        "ids": np.arange(3),
        "utility": np.array([10.0, 20.0, 30.0]),
        "seconds": np.array([10.0, 20.0, 40.0]),
        "last": np.array([1.0, 2.0, 4.0]),
    }
    oort = load_selection("oort")._select.__self__
    bonus = np.sqrt(0.1 * np.log(5) / np.array([1, 2, 4]))
    plain = np.array([0, 10 / 18, 1.0]) + bonus
    assert oort._scores(known, 50.0, 5) == pytest.approx(plain * [1, 1, 0.25])
    assert oort._scores(known, 100.0, 5) == pytest.approx(plain)


def test_oort_takes_the_best_it_tried_and_never_tries_the_hopeless_of_the_others():
    fleet = [*clients_of(num_rows=[8] * 5), Client(memory_bytes=1)]
    state = told("oort", [record(k, squared_loss=k**2 + 1.0) for k in range(3)])
    # Half of two are new: 3 or 4, for nothing fits 5; of those tried 2 alone is within 0.95 of the best.
    found = {tuple(asked("oort", view_of(fleet, seed=s), state, {"exploration": 0.5})[0]) for s in range(30)}
    assert found == {(2, 3), (2, 4)}


def test_oort_takes_those_it_tried_where_nobody_else_is_left():
    state = told("oort", [record(k, squared_loss=k + 1.0) for k in range(2)])
    view = view_of(clients_of(num_rows=[8] * 2), round_number=2)
    assert asked("oort", view, state)[0] == [0, 1]


@pytest.mark.parametrize(("sums", "percentile"), [((10, 10.5), 35.0), ((10, 20), 30.0), ((10, 70), 30.0)])
def test_oorts_pacer_allows_more_seconds_when_utility_stays(sums, percentile):
    state, options = {}, {"pacer_rounds": 1}
    for utility in sums:
        state = told("oort", [record(0, num_rows=1, squared_loss=utility**2)], state, options)
    assert (state["percentile"], state["sums"]) == (percentile, [sums[-1]])


def test_oorts_pacer_allows_fewer_seconds_again_when_utility_leaps():
    state = {"percentile": 45.0, "sums": [10.0]}
    records = [record(0, num_rows=1, squared_loss=70.0**2)]
    assert told("oort", records, state, {"pacer_rounds": 1})["percentile"] == 40.0


# All of them.


@pytest.mark.parametrize("name", NAMES)
def test_a_selection_keeps_the_contract_on_drawn_fleets_with_any_policy(name):
    policy = selected_by(load_selection(name, NAMES[name]), load_policy("largest_that_fits"))
    report = check_policy(policy, examples=6)
    assert [(f.name, f.sentence) for f in report.findings if f.outcome != "passed"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_selection_depends_on_the_seed_and_on_nothing_else(name):
    fleet = clients_of(flops_per_s=np.linspace(1, 100, 40).tolist())
    one, again, other = (asked(name, view_of(fleet, 5, seed=seed))[0] for seed in (1, 1, 2))
    assert one == again != other
    assert 1 <= len(one) <= 5


def test_uniform_asks_only_who_is_online():
    view = replace(view_of(clients_of(num_rows=[8] * 6), 3), is_online=lambda ids: ids % 2 == 0)
    assert asked("uniform", view, {}, {"online": True})[0] == [0, 2, 4]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tifl", {"probabilities": [0.5]}, r"probabilities are 5 numbers"),
        ("tifl", {"num_tiers": 0}, r"num_tiers is 1 to 127, found 0"),
        ("oort", {"cutoff": 2.0}, r"exploration and cutoff are 0 to 1"),
        ("fedcs", {}, r"Selection 'fedcs' needs the option 'deadline_seconds'"),
        ("power", {}, r"No selection is named 'power'; shipped are fedcs, .*uniform"),
    ],
)
def test_options_out_of_range_are_answered_with_a_sentence(name, options, message):
    with pytest.raises(PolicyError, match=message):
        load_selection(name, options)


def test_power_of_choice_refuses_fewer_candidates_than_a_round_asks_for():
    with pytest.raises(PolicyError, match=r"a round asks 2 clients, more than candidates = 1; raise it"):
        asked("power_of_choice", view_of(clients_of(num_rows=[8] * 3)), {}, {"candidates": 1})
