"""Policies of methods known from abstracts: what they give whom, on prices that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from cut_offers import cohort_of, menu_of, record_of, scheduled, view_of
from fedray.assignment import Assignment
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from fedray.testing import priced_model
from fedray.testing.priced_model import BLOCKS, Client
from tiny_run import merged, played

MENU = menu_of(ranks=(2, 8), cuts=())


def given(name, cohort, options=None, **more):
    return scheduled(name, cohort, MENU, options, **more).decision.assignments


def test_legend_has_ranks_that_rise_towards_the_output_on_every_depth():
    menu = load_policy("legend_style").menu(view_of(MENU))
    assert [entry.adapter.ranks for entry in menu] == [(0, 0, 0, 8), (0, 0, 2, 8), (0, 2, 5, 8), (2, 4, 6, 8)]


def test_legend_gives_the_slow_the_depth_that_is_quickest_and_the_others_the_deepest_that_fits():
    # 100 bytes, 40 for the blocks and the ranks: 160 of the deepest, 155 and 150, 148 of the shallowest.
    cohort = cohort_of([500, 500, 155, 500], [100.0, 100.0, 100.0, 10.0])
    ranks = [sum(entry.adapter.ranks) for entry in given("legend_style", cohort)]
    assert ranks == [20, 20, 10, 8]
    assert [sum(e.adapter.ranks) for e in given("legend_style", cohort, {"percentile": 100.0})][-1] == 20


def test_fedquad_rounds_as_few_blocks_as_let_a_deeper_adapter_fit():
    menu = menu_of(ranks=(8,), cuts=())
    # 140 and 8 for each trained block, less 3 for each in 8 bits; times 1.02: 175.4 for all, 166.3 with three
    # of them rounded, 163.2 with all; 167.3 for three, 158.1 with all three rounded; 151.0 for one.
    cohort = cohort_of([500, 167, 163, 155, 145])
    schedule = scheduled("fedquad_style", cohort, menu, {"percentile": 100.0})
    given = [
        None if e is None else (e.num_trained_blocks, e.int8_activations)
        for e in schedule.decision.assignments
    ]
    assert given == [(4, 0), (4, 3), (3, 2), (2, 2), None]


def test_scalefl_gives_the_largest_product_of_depth_and_width_and_of_equal_ones_the_nearest_to_both():
    menu = menu_of(ranks=(), tunings=("full",), cuts=(), exits=(1, 2), widths=(1.0, 0.5, 0.25))
    # 100 bytes, 10 for each block times its width, 1 for each trained block; times 1.02.
    cohort = cohort_of([500, 126, 122, 114, 106, 100])
    levels = [
        None if entry is None else (entry.cut, 1.0 if entry.width is None else entry.width.share)
        for entry in scheduled("scalefl_style", cohort, menu).decision.assignments
    ]
    # 124 for all blocks at a half and 122 for half of them; a quarter of all is 114 wide, 112 even, 111 deep.
    assert levels == [(4, 1.0), (2, 1.0), (2, 0.5), (1, 1.0), (1, 0.25), None]


def test_fedpilot_fills_the_budget_with_what_is_worth_most():
    # Rank 8 on all blocks is 64 bytes both ways and worth 37, rank 2 is 16 and 13; times the root of rows.
    clients = [Client(memory_bytes=500, num_rows=8), Client(memory_bytes=500, num_rows=32)]
    cohort = priced_model.cohort_of(clients)
    sizes = {
        share: [
            None if e is None else e.max_rank
            for e in given("fedpilot_style", cohort, {"budget_share": share})
        ]
        for share in (0.1, 0.5, 0.65, 1.0)
    }
    # 12.8 bytes hold nothing, 64 the large one of who has more rows, 83 a small one beside it, 128 both.
    assert sizes == {0.1: [None, None], 0.5: [None, 8], 0.65: [2, 8], 1.0: [8, 8]}


def test_fedpilot_leaves_out_who_cannot_be_in_time():
    cohort = cohort_of([500, 500], [100.0, 1.0])
    assert given("fedpilot_style", cohort, {"budget_share": 1.0, "deadline_seconds": 60.0})[1] is None
    assert given("fedpilot_style", cohort_of([50, 50])) == (None, None)


def test_devft_grows_from_one_block_to_all_in_stages():
    policy = load_policy("devft_style", {"stages": 4, "rounds_per_stage": 5})
    blocks = [
        {entry.blocks for entry in policy.menu(replace(view_of(MENU), round=number))}
        for number in (1, 5, 6, 11, 16, 99)
    ]
    assert blocks == [{(0,)}, {(0,)}, {(0, 3)}, {(0, 2, 3)}, {(0, 1, 2, 3)}, {(0, 1, 2, 3)}]


def test_droppeft_tries_every_share_and_then_takes_what_gained_most_a_second():
    cohort = cohort_of([500] * 40)
    policy = load_policy("droppeft_style", {"explore": 0.0})
    first = given("droppeft_style", cohort, {"explore": 0.0})
    assert {len(entry.blocks) for entry in first} == {BLOCKS}
    # Blocks are drawn for every client apart.
    half = {"tries": {"phone/4": 9, "phone/3": 9, "phone/2": 0, "phone/1": 9}, "gains": {}, "losses": {}}
    drawn = given("droppeft_style", cohort, {"explore": 0.0}, state=half)
    assert {len(entry.blocks) for entry in drawn} == {2}
    assert len({entry.blocks for entry in drawn}) == 6
    known = {f"phone/{count}": 2 for count in (1, 2, 3, 4)}
    gains = {"phone/1": 0.1, "phone/2": 0.3, "phone/3": 0.9, "phone/4": 0.2}
    learnt = given(
        "droppeft_style", cohort, {"explore": 0.0}, state={"tries": known, "gains": gains, "losses": {}}
    )
    assert {len(entry.blocks) for entry in learnt} == {3}
    row = {"device_class": "phone", "assignment": learnt[0].to_json(), "virtual_seconds": 4.0}
    state = policy.observe([record_of(7, loss=3.0, **row)], {})
    state = policy.observe([record_of(7, loss=1.0, **row)], state)
    assert state["gains"] == {"phone/3": 0.5}
    assert state["tries"] == {"phone/3": 2}


@pytest.mark.parametrize("name", ["legend_style", "devft_style", "droppeft_style"])
def test_a_menu_without_lora_on_whole_models_is_refused(name):
    with pytest.raises(PolicyError, match=r"give menu\.ranks and menu\.depths"):
        load_policy(name).menu(view_of(menu_of(cuts=(1,), whole=False)))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("legend_style", {"percentile": 101.0}, "percentile is from 0 to 100, found 101"),
        ("fedpilot_style", {"budget_share": 0.0}, "budget_share is above 0 and at most 1, found 0"),
        ("devft_style", {"stages": 0}, "stages is 1 or more, found 0"),
        ("droppeft_style", {"explore": 1.5}, "explore is from 0 to 1, found 1.5"),
    ],
)
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(PolicyError, match=words):
        load_policy(name, options)


@pytest.mark.parametrize("name", ["legend_style", "fedpilot_style", "devft_style", "droppeft_style"])
def test_they_run_and_their_prices_hold(tiny, name):
    named = {"name": name, "options": {"budget_share": 1.0}} if name == "fedpilot_style" else name
    changes = {
        "policy": named,
        "menu": {"depths": ["all"]},
        "rounds": {"num_rounds": 2, "clients_per_round": 4},
    }
    progress = played(merged(tiny, changes))
    assert {row.outcome for row in progress.clients} == {"ok"}
    assert all(row.up_bytes == row.predicted_up_bytes for row in progress.clients)
    assert all(Assignment.from_json(row.assignment).max_rank for row in progress.clients)
    assert np.isfinite([row.loss for row in progress.clients]).all()
