"""Membership inference from losses: its strength by hand, and on a model that has seen its rows too often."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from fedray.adapter import applied
from fedray.attacks.membership import by_loss, strength
from fedray.errors import ConfigError
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import train_pack
from shop import BLOCKS, assign, build, job


def test_the_strength_of_four_scores_by_hand():
    # Of 2 x 3 pairs members win 3 + 1, and one is a tie: 4.5 of 6.
    found = strength(np.array([5.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found.auc == pytest.approx(4.5 / 6)
    # None of three others may be named at one in a hundred: above 3 lies one member of two.
    assert (found.true_positive_rate, found.false_positive_rate) == (0.5, 0.0)
    loose = strength(np.array([5.0, 2.5]), np.array([1.0, 2.0, 3.0]), false_positive_rate=0.34)
    assert (loose.true_positive_rate, loose.false_positive_rate) == (1.0, pytest.approx(1 / 3))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20)
)
def test_the_area_is_that_of_the_rank_sum_test(members, others):
    own, theirs = np.array(members, float), np.array(others, float)
    found = strength(own, theirs)
    assert found.auc == pytest.approx(mannwhitneyu(own, theirs).statistic / (len(own) * len(theirs)))
    assert found.false_positive_rate <= 0.01


def test_a_model_that_has_seen_its_rows_fifty_times_gives_them_away_and_a_fresh_one_does_not():
    # Steps four times as long end where rounding takes them: 0.84 to 1 by the round that is drawn.
    gentle = LocalOptimizer(optim="adamw", learning_rate=0.005, max_grad_norm=None)
    workshop = build("bert", [16, 44], gentle)
    own = job(workshop, "bert", 0, assign("bert", BLOCKS, 8, num_epochs=50))
    members, others = workshop.partitions
    before = by_loss(workshop, own.sent, members, others)
    (update,) = train_pack(workshop, [own])
    after = by_loss(workshop, applied(own.sent, update.delta), members, others)
    assert 0.3 < before.auc < 0.7
    assert after.auc > 0.9
    assert (after.num_members, after.num_others) == (16, 44)


def test_no_rows_on_one_side_are_refused():
    with pytest.raises(ConfigError, match="found 0 and 3 rows"):
        strength(np.zeros(0), np.zeros(3))
    assert strength(np.zeros(2), np.zeros(3)).auc == 0.5


def test_a_score_far_above_all_others_is_named():
    found = strength(np.array([9.0]), np.arange(200.0) / 100)
    assert replace(found, num_others=0).true_positive_rate == 1.0
