"""Fed-HeLLo: the prior by its own numbers, how many blocks by what fits, honest prices, learnt weights."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from cut_offers import cohort_of, given_ranks, menu_of, record_of, scheduled, view_of
from fedray.assignment import Assignment
from fedray.cost import WorkShape
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from tiny_run import begun, merged, played

MENU = menu_of(ranks=(2, 8), cuts=())


def blocks_of(ranks):
    return [block for block, rank in enumerate(ranks) if rank]


def test_the_prior_of_twelve_blocks_is_the_published_one():
    prior = load_policy("fed_hello")._policy.assign.__globals__["PRIOR"]
    published = [1 / 9, 1 / 9, 1 / 9, 2 / 27, 2 / 27, 1 / 27, 1 / 27, 1 / 27, 2 / 27, 1 / 9, 1 / 9, 1 / 9]
    np.testing.assert_allclose(prior, published)
    assert prior.sum() == pytest.approx(1)


def test_half_three_quarters_or_all_blocks_by_what_fits():
    # 140 bytes and 8 a trained block: 156, 164, 172, with the margin of 2 % 159.1, 167.3, 175.4.
    ranks = given_ranks(scheduled("fed_hello", cohort_of([200, 170, 160, 150]), MENU))
    assert [None if own is None else len(blocks_of(own)) for own in ranks] == [4, 3, 2, None]
    assert {rank for own in ranks[:3] for rank in own} == {0, 8}


def test_blocks_are_drawn_by_the_prior_one_after_the_other():
    """At four blocks the prior is 3, 2, 1, 3 of 9: read at blocks 0, 3, 6 and 9 of twelve.

    The chance that a block is among two drawn without replacement is p + sum over the others q p / (1 - q).
    """
    prior = np.array([3, 2, 1, 3]) / 9
    expected = [p + sum(q * p / (1 - q) for j, q in enumerate(prior) if j != i) for i, p in enumerate(prior)]
    assert sum(expected) == pytest.approx(2)
    drawn = given_ranks(scheduled("fed_hello", cohort_of([160] * 100), MENU))
    held = np.array([[rank > 0 for rank in ranks] for ranks in drawn])
    np.testing.assert_allclose(held.mean(0), expected, atol=0.12)
    again = given_ranks(scheduled("fed_hello", cohort_of([160] * 2, client_ids=[7, 5]), MENU))
    assert again == [drawn[7], drawn[5]]


def test_a_block_drawn_low_pays_for_the_backward_pass_above_it(tiny):
    """On a traced model: the same number of blocks costs the more the lower the lowest, and all fit."""
    scene, _ = begun(merged(tiny, {"policy": "fed_hello"}))
    menu = load_policy("fed_hello").menu(view_of(scene.menu))
    entry = next(e for e in menu if e.num_trained_blocks == 2)
    shape = WorkShape(rows=4, tokens=16, attention="memory_efficient")

    def cost(blocks):
        ranks = tuple(4 if block in blocks else 0 for block in range(4))
        return scene.footprint(replace(entry, adapter=replace(entry.adapter, ranks=ranks)), shape)

    by_pair = {pair: cost(pair) for pair in combinations(range(4), 2)}
    offered = [scene.footprint(e, shape).peak_bytes for e in menu if e.num_trained_blocks == 2]
    assert max(own.peak_bytes for own in by_pair.values()) == max(offered)
    backward = [by_pair[lowest, 3].backward_flops for lowest in (0, 1, 2)]
    # Each block below adds the gradient of its input, and no more than that.
    assert backward[0] - backward[1] == pytest.approx(backward[1] - backward[2], rel=0.02)
    assert backward[1] > 1.3 * backward[2]
    assert by_pair[0, 3].peak_bytes > by_pair[1, 3].peak_bytes > by_pair[2, 3].peak_bytes


def test_information_in_three_clusters_makes_the_weights():
    # Sorted 1, 2 | 10, 11 | 50: of all ways in three parts the one of least scatter. 1, 1, 2, 2, 3 of 9.
    policy = load_policy("fed_hello", {"period": 2})
    told = [np.array([50.0, 1.0, 11.0, np.nan, 2.0]), np.array([50.0, 1.0, np.nan, 10.0, 2.0])]
    state = {}
    for number in (1, 2):
        records = [record_of(k, round=number, statistics={"fisher": own}) for k, own in enumerate(told)]
        state = policy.observe([*records, record_of(9, round=number)], state)
    assert list(state) == ["weights"]
    np.testing.assert_allclose(state["weights"], np.array([3, 1, 2, 2, 1]) / 9)


def test_weights_stay_while_a_block_is_not_known_and_the_period_is_not_over():
    policy = load_policy("fed_hello", {"period": 2})
    told = {"fisher": np.array([1.0, np.nan])}
    state = policy.observe([record_of(0, round=2, statistics=told)], {"weights": np.array([0.5, 0.5])})
    assert state["weights"].tolist() == [0.5, 0.5]
    assert state["counts"].tolist() == [1, 0]
    assert load_policy("fed_hello", {"period": None}).observables == ()


def test_learnt_weights_are_drawn_from():
    state = {"weights": np.array([0.0, 0.0, 0.5, 0.5])}
    drawn = given_ranks(scheduled("fed_hello", cohort_of([160] * 5), MENU, state=state))
    assert {tuple(blocks_of(ranks)) for ranks in drawn} == {(2, 3)}


@pytest.mark.parametrize(
    "menu", [menu_of(ranks=(2,), depths=(2,), cuts=()), menu_of(ranks=(2,), whole=False)]
)
def test_a_menu_that_trains_no_whole_model_is_refused(menu):
    with pytest.raises(PolicyError, match="draws from all blocks of whole models"):
        load_policy("fed_hello").menu(view_of(menu))
    with pytest.raises(PolicyError, match="period is 1 round or more"):
        load_policy("fed_hello", {"period": 0})


def test_a_run_moves_what_was_drawn_and_learns_the_weights(tiny):
    changes = {
        "policy": {"name": "fed_hello", "options": {"period": 2}},
        "rounds": {"num_rounds": 2, "clients_per_round": 8},
    }
    progress = played(merged(tiny, changes))
    rows = progress.clients
    assert all(row.outcome == "ok" and row.up_bytes == row.predicted_up_bytes for row in rows)
    held = {block for row in rows for block in blocks_of(Assignment.from_json(row.assignment).adapter.ranks)}
    moved = {int(site.split(".")[2]) for site, f in progress.state.adapter.factors.items() if f.b.any()}
    assert moved == held == {0, 1, 2, 3}
    assert progress.policy_state["weights"].sum() == pytest.approx(1)
