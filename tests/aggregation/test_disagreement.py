"""How unlike updates are, on vectors whose angles are known."""

import pytest
import torch

from fedray.aggregation.disagreement import Disagreement


def of(*updates, weights=None):
    found = Disagreement()
    for place, update in enumerate(updates):
        found.add({"w": torch.tensor(update)}, 1.0 if weights is None else weights[place])
    return found.value


def test_the_same_updates_agree_and_those_at_right_angles_have_nothing_in_common():
    assert of([1.0, 2.0], [1.0, 2.0]) == pytest.approx(0)
    assert of([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]) == pytest.approx(1)


def test_opposed_updates_are_beyond_that():
    # All of their length is cancelled, of two twice what right angles cancel.
    assert of([1.0, 0.0], [-1.0, 0.0]) == pytest.approx(2)


def test_at_sixty_degrees_a_half_is_common():
    # |d1 + d2|^2 = 3 of at most 4: a quarter is cancelled, and half would be at right angles.
    assert of([1.0, 0.0], [0.5, 0.75**0.5]) == pytest.approx(0.5)


def test_weights_count_as_so_many_of_the_same():
    assert of([1.0, 0.0], [0.0, 1.0], weights=[3.0, 3.0]) == pytest.approx(1)
    # Weights 2 and 1: 5 of 9 stays, and n = 9 / 5.
    assert of([1.0, 0.0], [0.0, 1.0], weights=[2.0, 1.0]) == pytest.approx(1)


def test_a_lower_rank_is_the_leading_part_of_a_higher_one():
    assert of([1.0], [1.0, 0.0]) == pytest.approx(0)
    assert of([0.0, 1.0], [1.0]) == pytest.approx(1)


def test_one_update_and_updates_of_nothing_tell_nothing():
    assert of([1.0]) is None
    assert of([0.0], [0.0]) is None
