"""What clients hold: paid for once, given up when storage is full, kept over a checkpoint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.holdings import Holdings

TWO_BLOCKS = {"stem": 10, "block.0": 100, "block.1": 100, "head": 1}
ONE_BLOCK = {"stem": 10, "block.0": 100, "head": 1}
ROOMY = np.array([10**6, 10**6])


def test_at_first_everything_is_missing():
    assert Holdings(5).missing_bytes(np.array([0, 4]), TWO_BLOCKS, "fp32").tolist() == [211, 211]


def test_what_was_received_is_paid_for_once_and_by_its_receiver_alone():
    store = Holdings(5)
    store.receive(np.array([4, 2]), ONE_BLOCK, "fp32", ROOMY)
    assert store.missing_bytes(np.array([2, 3, 4]), ONE_BLOCK, "fp32").tolist() == [0, 111, 0]
    assert store.missing_bytes(np.array([2, 3, 4]), TWO_BLOCKS, "fp32").tolist() == [100, 211, 100]


def test_a_block_in_bf16_is_another_piece_than_the_block_in_fp32():
    store = Holdings(2)
    store.receive(np.array([0, 1]), ONE_BLOCK, "fp32", ROOMY)
    assert store.missing_bytes(np.array([0]), {"block.0": 50}, "bf16").tolist() == [50]


def test_what_lies_there_already_is_never_missing():
    store = Holdings(2, preinstalled=True)
    store.receive(np.array([0]), TWO_BLOCKS, "fp32", np.array([1]))
    assert store.missing_bytes(np.array([0, 1]), TWO_BLOCKS, "fp32").tolist() == [0, 0]


def test_a_full_storage_gives_up_what_the_new_assignment_does_not_need():
    store = Holdings(2)
    store.receive(np.array([0, 1]), TWO_BLOCKS, "fp32", ROOMY)
    # 211 held; 55 more are 266 bytes: one byte too many for client 0, just right for client 1.
    store.receive(np.array([0, 1]), {"block.0": 55}, "bf16", np.array([265, 266]))
    assert store.missing_bytes(np.array([0, 1]), TWO_BLOCKS, "fp32").tolist() == [211, 0]
    assert store.missing_bytes(np.array([0, 1]), {"block.0": 55}, "bf16").tolist() == [0, 0]


def test_a_piece_that_changes_its_size_is_our_mistake():
    store = Holdings(1)
    store.receive(np.array([0]), {"stem": 10}, "fp32", np.array([100]))
    with pytest.raises(AssertionError, match="was 10 bytes, now 11"):
        store.receive(np.array([0]), {"stem": 11}, "fp32", np.array([100]))


RECEIPTS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 9), min_size=1),
        st.sets(st.sampled_from(["stem", "block.0", "block.1", "block.2", "head"]), min_size=1),
        st.sampled_from(["fp32", "bf16"]),
        st.integers(60, 400),
    ),
    max_size=6,
)
SIZES = {"stem": 10, "block.0": 20, "block.1": 30, "block.2": 40, "head": 50}


def held_after(receipts):
    store = Holdings(10)
    for clients, pieces, dtype, storage in receipts:
        held = {piece: SIZES[piece] for piece in sorted(pieces)}
        store.receive(np.array(sorted(clients)), held, dtype, np.full(len(clients), storage))
    return store


@settings(max_examples=40, deadline=None)
@given(RECEIPTS)
def test_a_store_comes_back_from_a_checkpoint_as_it_was(tmp_path_factory, receipts):
    store = held_after(receipts)
    file = tmp_path_factory.mktemp("holdings") / "store.npz"
    np.savez(file, **store.to_arrays())
    with np.load(file, allow_pickle=False) as arrays:
        again = Holdings.from_arrays(arrays)
    everyone = np.arange(10)
    for dtype in ("fp32", "bf16"):
        for piece, size in SIZES.items():
            found = again.missing_bytes(everyone, {piece: size}, dtype)
            assert found.tolist() == store.missing_bytes(everyone, {piece: size}, dtype).tolist()
    assert again.num_clients == 10


@settings(max_examples=40, deadline=None)
@given(RECEIPTS)
def test_a_client_ends_with_the_last_pieces_it_received(receipts):
    store = held_after(receipts)
    for clients, pieces, dtype, _ in receipts[-1:]:
        last = {piece: SIZES[piece] for piece in pieces}
        assert not store.missing_bytes(np.array(sorted(clients)), last, dtype).any()


def test_a_preinstalled_store_comes_back_preinstalled():
    again = Holdings.from_arrays(Holdings(3, preinstalled=True).to_arrays())
    assert again.missing_bytes(np.arange(3), TWO_BLOCKS, "fp32").tolist() == [0, 0, 0]


def test_what_was_given_up_was_held_all_the_same_and_is_known_after_a_checkpoint():
    store = Holdings(3)
    store.receive(np.array([0, 1]), TWO_BLOCKS, "fp32", ROOMY)
    store.receive(np.array([0]), {"block.5": 100}, "bf16", np.array([120]))
    assert store.missing_bytes(np.array([0]), {"block.0": 100}, "fp32").tolist() == [100]
    again = Holdings.from_arrays(store.to_arrays())
    for one in (store, again):
        assert one.ever_held(0) == {"stem", "block.0", "block.1", "head", "block.5"}
        assert one.ever_held(1) == set(TWO_BLOCKS)
        assert one.ever_held(2) == set()
