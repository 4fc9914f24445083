"""FlexLoRA, FLoRA and FFA-LoRA: the most that fits, under the aggregation that their papers define."""

import numpy as np
import pytest
import torch

from cut_offers import cohort_of, given_cuts, given_ranks, menu_of, scheduled
from fedray.engine import play_round
from fedray.errors import PolicyError
from fedray.policy_loading import load_policy
from tiny_run import merged, opened, played

# 100 bytes, 10 a block and 1 a unit of rank: 148 for rank 2 on all four blocks, 172 for rank 8; on the top
# one 142 and 148. With the margin of 2 %: 150.96, 175.44, 144.84, 150.96.
MENU = menu_of(ranks=(2, 8), depths=(1, "all"), cuts=())
MEMORY = [200, 160, 147, 100]


@pytest.mark.parametrize("name", ["flexlora", "flora", "ffa", "raflora_style"])
def test_blocks_come_first_and_then_the_largest_rank_that_fits(name):
    ranks = given_ranks(scheduled(name, cohort_of(MEMORY), MENU))
    assert ranks == [(8,) * 4, (2,) * 4, (0, 0, 0, 2), None]


@pytest.mark.parametrize("name", ["flexlora", "ffa", "raflora_style"])
def test_with_cuts_the_server_runs_no_more_than_it_must(name):
    # With a cut 100 + 10 + 2 = 112 for one block, 124 for two, 136 for three.
    menu = menu_of(ranks=(2,))
    assert given_cuts(scheduled(name, cohort_of([200, 130, 116]), menu)) == [4, 2, 1]


def test_flora_merges_into_whole_models_alone():
    assert given_cuts(scheduled("flora", cohort_of([200, 130]), menu_of(ranks=(2,)))) == [4, None]


def test_ffa_gives_everybody_the_papers_one_rank_or_nothing():
    ranks = given_ranks(scheduled("ffa", cohort_of(MEMORY), MENU, {"rank": 8}))
    assert ranks == [(8,) * 4, (0, 0, 0, 8), None, None]
    with pytest.raises(PolicyError, match=r"ffa trains B of rank 3, and the menu's ranks are \[2, 8\]"):
        scheduled("ffa", cohort_of(MEMORY), MENU, {"rank": 3})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flexlora", "the menu has none"),
        ("raflora_style", "the menu has none"),
        ("flora", "none of the menu's 1"),
        ("ffa", "rank 1 or more"),
    ],
)
def test_a_menu_without_ranks_is_refused(name, message):
    with pytest.raises(PolicyError, match=message):
        scheduled(name, cohort_of([200]), menu_of(ranks=(), head_only=True, cuts=()))


@pytest.mark.parametrize(
    ("name", "rule"),
    [("flexlora", "flexlora"), ("flora", "flora"), ("ffa", "ffa_lora"), ("raflora_style", "raflora")],
)
def test_each_asks_for_its_papers_aggregation(name, rule):
    assert load_policy(name).aggregation == rule


def test_flexloras_first_round_is_the_svd_of_the_mean_product(tiny, monkeypatch):
    """By numpy, from what clients sent: U[:, :r] S[:r] / s in B, V^T[:r] in A, as the official code does."""
    changes = {
        "policy": "flexlora",
        "menu": {"ranks": [2, 16]},
        "rounds": {"num_rounds": 1, "clients_per_round": 8},
    }
    scene, progress, runtime = opened(merged(tiny, changes))
    added = []
    opened_sum = type(scene.rule).start

    def watched(rule, state):
        added.clear()  # the drift of a round without training is summed up first
        total = opened_sum(rule, state)
        plain = total.add
        monkeypatch.setattr(
            total,
            "add",
            lambda update, sent, weight: (added.append((update, sent, weight)), plain(update, sent, weight)),
        )
        return total

    monkeypatch.setattr(type(scene.rule), "start", watched)
    play_round(scene, progress, runtime, 1)
    runtime.close()
    site = next(s for s in progress.state.adapter.factors if s.endswith("layer.3.attention.self.query"))
    holders = [(u.factors[site], s.factors[site], w) for u, s, w in added if site in s.factors]
    assert len({sent.rank for _, sent, _ in holders}) > 1
    total = sum(weight for _, _, weight in holders)
    mean = (
        sum(w * s.scale * ((s.b + u.b).double() @ (s.a + u.a).double()).numpy() for u, s, w in holders)
        / total
    )
    left, values, right = np.linalg.svd(mean)
    found = progress.state.adapter.factors[site]
    best = left[:, :16] * values[:16] @ right[:16]
    torch.testing.assert_close(
        found.scale * (found.b @ found.a).double(), torch.from_numpy(best), rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(found.b.norm(dim=0).double() * found.scale, torch.from_numpy(values[:16]))
    torch.testing.assert_close(found.a @ found.a.T, torch.eye(16), rtol=0, atol=1e-5)


def test_under_ffa_no_client_moves_or_sends_an_a(tiny):
    changes = {"policy": "ffa", "rounds": {"num_rounds": 2, "clients_per_round": 4}}
    scene, progress, runtime = opened(merged(tiny, changes))
    before = {site: f.a.clone() for site, f in progress.state.adapter.factors.items()}
    for number in (1, 2):
        play_round(scene, progress, runtime, number)
    runtime.close()
    after = progress.state.adapter.factors
    assert all(torch.equal(after[site].a, a) for site, a in before.items())
    assert any(bool(f.b.any()) for f in after.values())


def test_under_flora_everybody_pays_for_the_whole_stack(tiny):
    progress = played(merged(tiny, {"policy": "flora", "rounds": {"num_rounds": 2, "clients_per_round": 4}}))
    stack = sum(4 * (f.a.numel() + f.b.numel()) for f in progress.state.base_delta.values())
    assert stack > 0
    second = [record for record in progress.clients if record.round == 2]
    first_stack = min(record.predicted_down_bytes - record.predicted_up_bytes for record in second)
    assert first_stack > 0
    assert all(record.down_bytes == record.predicted_down_bytes for record in second)
