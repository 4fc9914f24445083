"""Membership by likelihood ratio: by hand, and against the loss alone where rows are unlike."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from fedray.adapter import applied
from fedray.attacks.membership import by_loss, losses_of, strength
from fedray.attacks.shadows import (
    by_ratio,
    halves_of,
    losses_of_shadows,
    ratios,
    shadow_jobs,
    told_by,
    trained_shadows,
)
from fedray.errors import ConfigError
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import train_pack
from shop import BLOCKS, assign, build, job
from tiny_run import assert_same_adapter

OVERFIT = LocalOptimizer(optim="adamw", learning_rate=0.005, max_grad_norm=None)


def test_two_rows_and_three_shadows_by_hand():
    # Log-odds of shadows that left row 0 out: 0 and 2; of those that left row 1 out: -1 and 1.
    odds = np.array([[0.0, -1.0], [2.0, 9.0], [9.0, 1.0]])
    chances = 1 / (1 + np.exp(-odds))
    out = np.array([[True, True], [True, False], [False, True]])
    # Means 1 and 0; one deviation: sqrt((1 + 1 + 1 + 1) / 2). The model has 4 and -1.
    own = np.array([4.0, -1.0])
    found = ratios(-np.log(1 / (1 + np.exp(-own))), -np.log(chances), out)
    assert found == pytest.approx([3 / np.sqrt(2), -1 / np.sqrt(2)])
    assert logit(chances)[0, 1] == pytest.approx(-1)


def test_where_rows_are_unlike_the_ratio_names_members_that_the_loss_does_not():
    random = np.random.default_rng(0)
    # Log-odds of a row: its own ease, far apart; one more for members; noise of a quarter.
    ease, member = random.normal(0, 4, 400), np.arange(400) < 200
    model = ease + member + random.normal(0, 0.25, 400)
    seen = ease + random.normal(0, 0.25, (16, 400))
    losses = [np.log1p(np.exp(-odds)) for odds in (model, seen)]
    scores = ratios(losses[0], losses[1], np.ones((16, 400), bool))
    by_ratios, alone = (strength(s[member], s[~member]) for s in (scores, -losses[0]))
    assert by_ratios.auc > 0.95
    assert by_ratios.true_positive_rate > 0.5
    assert alone.auc < 0.65


def test_a_model_that_overfits_gives_members_away_to_shadows_too_and_a_fresh_one_does_not():
    workshop = build("bert", [16, 44], OVERFIT)
    own = job(workshop, "bert", 0, assign("bert", BLOCKS, 8, num_epochs=40))
    members, others = workshop.partitions
    shadows = trained_shadows(workshop, own, np.concatenate([members, others]), 6, seed=3)
    assert [len(shadow.rows) for shadow in shadows] == [30] * 6
    left_out = np.stack([~np.isin(np.arange(60), shadow.rows) for shadow in shadows]).sum(0)
    assert set(left_out) == {3}
    assert len({tuple(shadow.rows) for shadow in shadows}) == 6
    (update,) = train_pack(workshop, [own])
    after = applied(own.sent, update.delta)
    assert by_ratio(workshop, after, shadows, members, others).auc > 0.9
    assert by_ratio(workshop, own.sent, shadows, members, others).auc < 0.75
    assert by_loss(workshop, after, members, others).auc > 0.9


def test_losses_are_those_of_the_trained_shadows_and_no_numbers_of_one_that_diverged():
    workshop = build("bert", [8, 8], OVERFIT)
    like = job(workshop, "bert", 0, assign("bert", BLOCKS, 4, num_epochs=2))
    rows = np.concatenate(workshop.partitions)
    halves = halves_of(rows, 4, 7)
    assert all(sorted([*one, *other]) == sorted(rows) for one, other in (halves[:2], halves[2:]))
    shadows = trained_shadows(workshop, like, rows, 4, 7)
    losses = losses_of_shadows(workshop, shadow_jobs(like, halves), halves, rows)
    assert np.array_equal(losses, [losses_of(workshop, one.adapter, rows) for one in shadows])
    assert len(np.unique(losses, axis=0)) == 4
    # The last two by themselves are the same shadows; a pack of another size rounds otherwise.
    two = losses_of_shadows(workshop, shadow_jobs(like, halves)[2:], halves, rows)
    assert two == pytest.approx(losses[2:], rel=1e-3)
    wild = replace(workshop, optimizer=replace(OVERFIT, learning_rate=1e38))
    assert np.isnan(losses_of_shadows(wild, shadow_jobs(like, halves)[:1], halves, rows)).all()


def test_a_pull_to_a_rounds_start_and_a_servers_variates_are_not_a_shadows():
    plain = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
    pulled = replace(plain, proximal_mu=9.0, control_variates=True)
    shadows = []
    for optimizer in (plain, pulled):
        workshop = build("bert", [8], optimizer)
        like = job(workshop, "bert", 0, assign("bert", BLOCKS, 4, num_epochs=3))
        shadows.append(trained_shadows(workshop, like, workshop.partitions[0], 4, 0)[3])
    assert_same_adapter(shadows[0].adapter, shadows[1].adapter)


def test_shadows_without_losses_are_left_out_while_two_remain_for_every_row():
    # Six shadows and four rows, of which the first two are members; halves are of rows 0, 1 and 2, 3.
    out = np.array([[False, False, True, True], [True, True, False, False]] * 3)
    model, nothing = np.array([0.1, 0.2, 1.5, 1.0]), np.full(4, np.nan)
    shadows = np.random.default_rng(0).uniform(0.5, 1.5, (6, 4))
    scores = ratios(model, shadows[1:5], out[1:5])
    told = told_by(model, np.stack([nothing, *shadows[1:5], nothing]), out, 2)
    assert told == strength(scores[:2], scores[2:])
    assert told.auc == 1.0
    assert told_by(model, np.stack([nothing, nothing, nothing, *shadows[3:]]), out, 2) is None
    assert told_by(model, np.stack([nothing] * 6), out, 2) is None


def test_too_few_shadows_are_refused():
    with pytest.raises(ConfigError, match="1 of 2 rows were left out by fewer than two shadows"):
        ratios(np.ones(2), np.ones((2, 2)), np.array([[True, True], [True, False]]))
    workshop = build("bert", [4], OVERFIT)
    own = replace(job(workshop, "bert", 0, assign("bert", BLOCKS, 2)))
    with pytest.raises(ConfigError, match="found 3 on 4 rows"):
        trained_shadows(workshop, own, workshop.partitions[0], 3, seed=0)
