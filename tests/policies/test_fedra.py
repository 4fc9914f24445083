"""FedRA: depth by what fits, blocks by lot, each block's mean over who held it."""

from dataclasses import replace

import numpy as np
import pytest

from cut_offers import cohort_of, menu_of, scheduled, view_of
from fedray.assignment import Assignment
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from fedray.testing.priced_model import BLOCKS
from tiny_run import merged, played

MENU = menu_of(ranks=(2, 8))


def asked(cohort, **options):
    return [entry for entry in scheduled("fedra", cohort, MENU, options).decision.assignments if entry]


def test_the_menu_has_every_depth_at_the_largest_rank():
    menu = load_policy("fedra").menu(view_of(MENU))
    assert [(entry.blocks, entry.adapter.ranks) for entry in menu] == [
        (tuple(range(n)), (8,) * n) for n in range(1, BLOCKS + 1)
    ]
    assert load_policy("fedra", {"rank": 2}).menu(view_of(MENU))[-1].adapter.ranks == (2,) * BLOCKS


def test_blocks_are_drawn_evenly_and_by_client_and_round_alone():
    # 100 bytes, 10 a block and 8 a block's ranks: 136 for two, with the margin 138.7; 154 for three.
    drawn = asked(cohort_of([140] * 99))
    assert {len(entry.blocks) for entry in drawn} == {2}
    held = np.array([[block in entry.blocks for block in range(BLOCKS)] for entry in drawn])
    np.testing.assert_allclose(held.mean(0), 0.5, atol=0.15)
    assert asked(cohort_of([140] * 2, client_ids=[7, 5])) == [drawn[7], drawn[5]]


def test_in_turn_every_block_is_held_as_often_as_any():
    # Two blocks fit, as above; the model has four, so a turn takes four rounds.
    cohorts = [replace(cohort_of([140]), round=number) for number in range(1, 6)]
    rounds = [asked(cohort, blocks="in_turn")[0].blocks for cohort in cohorts]
    assert rounds == [(0, 1), (1, 2), (2, 3), (0, 3), (0, 1)]
    with pytest.raises(PolicyError, match="blocks is by_lot or in_turn, found 'rolling'"):
        load_policy("fedra", {"blocks": "rolling"})


def test_a_menu_without_adapters_is_refused():
    with pytest.raises(PolicyError, match="fedra trains LoRA on whole blocks"):
        load_policy("fedra").menu(view_of(menu_of(cuts=(1,), whole=False)))


def test_a_round_moves_the_blocks_that_somebody_held_and_pays_for_what_is_new(tiny):
    changes = {"policy": "fedra", "rounds": {"num_rounds": 2, "clients_per_round": 3}}
    progress = played(merged(tiny, changes))
    rows = progress.clients
    assert all(row.outcome == "ok" and row.up_bytes == row.predicted_up_bytes for row in rows)
    held = {block for row in rows for block in Assignment.from_json(row.assignment).blocks}
    moved = {int(site.split(".")[2]) for site, f in progress.state.adapter.factors.items() if f.b.any()}
    assert moved == held
    audited = [row for row in rows if row.measured_peak_bytes is not None]
    assert audited
    for row in audited:
        assert row.predicted_peak_bytes == pytest.approx(row.measured_peak_bytes, rel=0.02)
