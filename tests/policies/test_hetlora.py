"""HetLoRA: ranks by capacity, pruned as clients report it, and the local rule that goes with it."""

import json

import pytest

from cut_offers import cohort_of, given_ranks, menu_of, record_of, scheduled, view_of
from fedray.agreed import agreed_local_rules
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.policy_loading import load_policy
from fedray.scheduler import ask_menu
from tiny_run import merged, opened, played

# Everything fits: 100 bytes, 10 a block, 1 a unit of rank, and four blocks.
ROOM = [900, 901, 902, 903]
MENU = menu_of(ranks=(2, 8), cuts=())


def ranks_given(state=None, menu=MENU):
    return given_ranks(scheduled("hetlora", cohort_of(ROOM), menu, state=state))


def test_the_smaller_half_of_devices_gets_the_small_rank():
    assert ranks_given() == [(2,) * 4, (2,) * 4, (8,) * 4, (8,) * 4]


def test_every_rank_that_pruning_may_come_to_is_on_the_menu_and_with_cuts_none_is_added():
    policy = load_policy("hetlora")
    assert [entry.max_rank for entry in ask_menu(policy, view_of(MENU))] == [2, 8, 2 + 1, 4, 5, 6, 7]
    cut = menu_of(ranks=(2, 8))
    assert tuple(ask_menu(policy, view_of(cut))) == cut


def test_a_client_goes_on_with_the_rank_it_reports_but_never_below_the_smallest():
    policy = load_policy("hetlora")
    ask_menu(policy, view_of(MENU))
    eight = MENU[1].to_json()
    state = {"ranks": {0: 2, 1: 8, 2: 8, 3: 8}, "smallest": 2}
    rows = [
        record_of(0, assignment=MENU[0].to_json(), statistics={"kept_rank": [1.0]}),
        record_of(1, assignment=eight, statistics={"kept_rank": [7.0]}),
        record_of(2, assignment=eight, statistics={"kept_rank": [8.0]}),
        record_of(3, assignment=eight, outcome="late"),
    ]
    learnt = policy.observe(rows, state)
    assert learnt["ranks"] == {0: 2, 1: 7, 2: 8, 3: 8}
    assert ranks_given(learnt) == [(2,) * 4, (7,) * 4, (8,) * 4, (8,) * 4]


def test_who_had_room_for_less_than_its_rank_has_not_pruned():
    policy = load_policy("hetlora")
    row = record_of(0, assignment=MENU[0].to_json(), statistics={"kept_rank": [2.0]})
    assert policy.observe([row], {"ranks": {0: 8}, "smallest": 2})["ranks"] == {0: 8}


def test_its_penalty_is_the_default_and_gives_way_to_the_configurations_and_to_cuts():
    policy = load_policy("hetlora")
    assert agreed_local_rules(load_config({}), policy)["tail_penalty"] == 1e-3
    assert agreed_local_rules(load_config({"training": {"tail_penalty": 0.0}}), policy)["tail_penalty"] == 0.0
    assert (
        agreed_local_rules(load_config({"training": {"tail_penalty": 0.2}}), load_policy("flexlora"))[
            "tail_penalty"
        ]
        == 0.2
    )
    assert agreed_local_rules(load_config({"menu": {"cuts": [1]}}), policy)["tail_penalty"] == 0.0
    with pytest.raises(ConfigError, match=r"training.tail_gamma has no effect with the policy 'flexlora'"):
        agreed_local_rules(load_config({"training": {"tail_gamma": 0.9}}), load_policy("flexlora"))


def test_a_run_prunes_what_it_pulls_down_and_pays_for_the_report(tiny):
    changes = {
        "policy": "hetlora",
        "menu": {"ranks": [2, 5], "depths": ["all"]},
        "training": {"tail_penalty": 30.0, "optim": "sgd", "learning_rate": 1e-2},
        "rounds": {"num_rounds": 4, "clients_per_round": 8},
    }
    progress = played(merged(tiny, changes))
    given = {}
    for record in progress.clients:
        rank = max(json.loads(record.assignment)["adapter"]["ranks"])
        given.setdefault(record.client_id, []).append(rank)
        if record.outcome == "ok":
            assert record.up_bytes == record.predicted_up_bytes
            reported = json.loads(record.statistics)["kept_rank"][0]
            assert reported in (rank, max(1, rank - 1))
    assert any(own[0] == 5 and own[-1] < 5 for own in given.values())
    assert all(own == sorted(own, reverse=True) and min(own) >= 2 for own in given.values())


def test_with_cuts_nobody_reports_a_rank(tiny):
    changes = {"policy": "hetlora", "menu": {"cuts": [1, 2]}, "rounds": {"num_rounds": 1}}
    scene, _, runtime = opened(merged(tiny, changes))
    runtime.close()
    assert scene.optimizer.tail_penalty == 0.0
