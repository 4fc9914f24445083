"""A policy's state comes back from a checkpoint exactly, or is refused when it is written."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from fedray.errors import PolicyError
from fedray.policy_state import freeze_state, thaw_state

ARRAYS = st_numpy.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.bool_, "U3"]), st_numpy.array_shapes(min_dims=0)
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ARRAYS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.lists(inner).map(tuple)
    ),
    max_leaves=8,
)


def same(left, right):
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return left == right


def through_a_file(state):
    text, arrays = freeze_state(state)
    file = io.BytesIO()
    np.savez(file, **{str(i): array for i, array in enumerate(arrays.values())})
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return thaw_state(text, {key: stored[str(i)] for i, key in enumerate(arrays)})


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text() | st.integers(), TREES, max_size=4))
def test_a_tree_of_arrays_numbers_and_strings_comes_back_as_it_was(state):
    assert same(through_a_file(state), state)


def test_numpy_numbers_keep_their_type_and_client_ids_stay_integers():
    again = through_a_file({"loss": np.float32(0.1), "ranks": {3: np.int64(8)}, "pair": (1, [2])})
    assert type(again["loss"]) is np.float32
    assert again["ranks"] == {3: 8}
    assert type(again["ranks"][3]) is np.int64
    assert again["pair"] == (1, [2])


def test_keys_that_read_alike_are_kept_apart():
    state = {"a": {"b": np.array([1.0])}, "a']['b": np.array([2.0]), 1: np.array([3.0]), "1": np.array([4.0])}
    assert same(through_a_file(state), state)


def test_a_frozen_state_does_not_follow_later_changes():
    counts = np.zeros(2)
    text, arrays = freeze_state({"counts": counts})
    counts += 1
    assert thaw_state(text, arrays)["counts"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"seen": {"ids": {1, 2}}}, r"state\['seen'\]\['ids'\] is a set"),
        ({"rng": np.random.default_rng(0)}, r"state\['rng'\] is a Generator"),
        ({"rows": [0, object()]}, r"state\['rows'\]\[1\] is a object"),
        ({"odd": np.array([None])}, r"arrays hold numbers or text; state\['odd'\] does not"),
        ({(1, 2): 0}, r"state has the key \(1, 2\)"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(state, message):
    with pytest.raises(PolicyError, match=message):
        freeze_state(state)
