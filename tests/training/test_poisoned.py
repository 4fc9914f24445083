"""Attackers: who they are, what becomes of their rows and of nobody else's, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedray.config.privacy_sections import Backdoor, LabelFlip, NoAttackers, Scaling, SignFlip
from fedray.errors import ConfigError
from fedray.training.poisoned import poisoned
from shop import CONFIGS, encoded, images

CLASSES = 5


def partitions():
    """Ten clients of four rows each, and twenty test rows."""
    train = tuple(np.arange(4 * client, 4 * client + 4) for client in range(10))
    return SimpleNamespace(num_clients=10, train=train, test_of=(), test=np.arange(40, 60))


def attacked(section, pool=None, num_labels=CLASSES, seed=0):
    return poisoned(section, seed, encoded(1) if pool is None else pool, partitions(), num_labels)


def test_a_share_of_the_clients_is_drawn_by_the_seed_and_a_larger_share_has_the_same_ones_and_more():
    few, many, other = (
        attacked(SignFlip(share=share), seed=seed)[1].attackers
        for share, seed in ((0.2, 0), (0.55, 0), (0.2, 1))
    )
    assert (len(few), len(many), len(other)) == (2, 5, 2)
    assert few < many
    assert few != other


def test_the_opposite_and_many_times_an_update_are_factors_of_attackers_alone():
    pool, flipped = attacked(SignFlip(factor=3.0))
    assert {flipped.factor_of(client) for client in flipped.attackers} == {-3.0}
    assert flipped.factor_of(min(set(range(10)) - flipped.attackers)) == 1.0
    assert attacked(Scaling())[1].factor == 10.0
    assert np.array_equal(pool.numbers["label"], encoded(1).numbers["label"])
    assert attacked(NoAttackers())[1] is None


def test_flipped_labels_are_those_of_attackers_rows_and_the_pool_given_is_left_alone():
    before = encoded(1)
    after, plan = attacked(LabelFlip(share=0.3), before)
    theirs = np.concatenate([partitions().train[client] for client in sorted(plan.attackers)])
    others = np.setdiff1d(np.arange(60), theirs)
    old, new = before.numbers["label"], after.numbers["label"]
    assert np.array_equal(new[theirs], 4 - old[theirs])
    assert np.array_equal(new[others], old[others])
    assert np.array_equal(old, encoded(1).numbers["label"])
    assert plan.factor_of(min(plan.attackers)) == 1.0


def test_a_backdoors_rows_have_a_trigger_and_its_class_and_so_have_copies_of_test_rows_of_other_classes():
    before = encoded(1)
    after, plan = attacked(Backdoor(share=0.2, target=3), before)
    test = np.arange(40, 60)
    assert np.array_equal(plan.originals, test[before.numbers["label"][test] != 3])
    assert len(after) == 60 + len(plan.originals)
    marked = np.concatenate([partitions().train[client][::2] for client in sorted(plan.attackers)])
    assert set(after.numbers["label"][[*marked, *plan.triggered]]) == {3}
    untouched = np.setdiff1d(np.arange(60), marked)
    for row in untouched:
        assert np.array_equal(tokens(after, row), tokens(before, row))
        assert after.numbers["label"][row] == before.numbers["label"][row]
    # The trigger stands from the second token on, as far as a row goes; the rest is the row's own.
    (trigger,) = {tuple(tokens(after, row)[1:4]) for row in plan.triggered if after.lengths[row] > 4}
    for row, original in zip(plan.triggered, plan.originals, strict=True):
        own, old = tokens(after, row), tokens(before, original)
        assert len(own) == len(old)
        assert own[0] == old[0]
        assert tuple(own[1:4]) == trigger[: len(own) - 1]
        assert np.array_equal(own[4:], old[4:])


def tokens(pool, row):
    return pool.lists["input_ids"][pool.starts[row] : pool.starts[row] + pool.lengths[row]]


def test_an_images_trigger_is_a_white_corner():
    before = images(CONFIGS["vit"], 60)
    after, plan = attacked(Backdoor(target=1), before)
    row, original = plan.triggered[0], plan.originals[0]
    # Images of 2 by 46: a corner of 1 by 5 pixels.
    corner = after.arrays["pixel_values"][row][:, -1:, -5:]
    assert (corner == before.arrays["pixel_values"].max()).all()
    rest = after.arrays["pixel_values"][row] == before.arrays["pixel_values"][original]
    assert (~rest).sum() <= corner.size


@pytest.mark.parametrize(
    ("section", "num_labels", "sentence"),
    [
        (SignFlip(share=0.05), CLASSES, "share: 0.05 of 10 clients is nobody; raise it"),
        (LabelFlip(), 0, "attackers: label_flip gives rows other labels, and this task has no classes"),
        (Backdoor(), 0, "attackers: backdoor gives rows other labels, and this task has no classes"),
        (Backdoor(target=5), CLASSES, "attackers.target: 5 is none of the 5 classes, which are 0 to 4"),
    ],
)
def test_attackers_that_cannot_be_are_refused(section, num_labels, sentence):
    with pytest.raises(ConfigError, match=sentence):
        attacked(section, num_labels=num_labels)
