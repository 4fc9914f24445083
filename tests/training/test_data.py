from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, ViTConfig

from fedray.assignment import Assignment, lora_on_top
from fedray.errors import ConfigError, DataError
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.training.data import FILLER, Encoded, batch_plan, bucket, collate, encode, longest_row


class Letters:
    """A tokenizer with the two ids that padding asks for."""

    pad_token_id = None
    eos_token_id = 9


class Features:
    """A task whose rows are their own features."""

    head = "causal_lm"

    def features(self, row, tokenizer, max_length):
        return row


ROWS: ClassVar = [
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "label": 7, "share": 0.5},
    {"input_ids": [4], "labels": [4], "label": 8, "share": 0.25},
]


def encoded(rows=ROWS, max_length=4):
    return encode(Features(), rows, Letters(), max_length)


def test_a_batch_worked_by_hand():
    batch = collate(encoded(), np.array([1, 0]), tokens=4, rows=3)
    assert batch["input_ids"].tolist() == [[4, 9, 9, 9], [1, 2, 3, 9], [9, 9, 9, 9]]
    assert batch["labels"].tolist() == [[4, -100, -100, -100], [-100, 2, 3, -100], [-100] * 4]
    # The filler attends to its first token: a softmax over nothing is not a number.
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["label"].tolist() == [8, 7, 0]
    assert batch["share"].tolist() == [0.25, 0.5, 0.0]
    assert batch["weight"].tolist() == [1.0, 1.0, 0.0]
    assert {name: t.dtype for name, t in batch.items()} == {
        "input_ids": torch.int64,
        "labels": torch.int64,
        "attention_mask": torch.int64,
        "label": torch.int64,
        "share": torch.float32,
        "weight": torch.float32,
    }


def test_arrays_of_one_shape_are_rows_of_a_batch_and_zero_in_fillers():
    rows = [
        {"input_ids": [1], "boxes": np.array([[1, 2], [3, 4]]), "share": np.array([[0.5]])},
        {"input_ids": [2], "boxes": np.array([[5, 6], [7, 8]]), "share": np.array([[0.25]])},
    ]
    kept = encoded(rows)
    assert kept.arrays["boxes"].dtype == np.int32
    batch = kept.batch(np.array([1, FILLER, 0]), 2)
    assert batch["boxes"].tolist() == [[[5, 6], [7, 8]], [[0, 0], [0, 0]], [[1, 2], [3, 4]]]
    assert batch["share"].tolist() == [[[0.25]], [[0.0]], [[0.5]]]
    assert (batch["boxes"].dtype, batch["share"].dtype) == (torch.int64, torch.float32)


def test_bytes_stand_for_the_levels_of_their_channel():
    pixels = np.array([[[[0, 255]], [[1, 2]]]], np.uint8)  # one row of two channels, one by two
    levels = np.stack([np.arange(256) / 255, -np.arange(256.0)]).astype(np.float32)
    kept = Encoded(
        lengths=np.array([3]), starts=np.array([0]), lists={}, numbers={}, pad_id=0,
        arrays={"pixel_values": pixels}, levels={"pixel_values": levels},
    )  # fmt: skip
    batch = kept.batch(np.array([0, FILLER]), 3)
    assert batch["pixel_values"].tolist() == [[[[0.0, 1.0]], [[-1.0, -2.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pixels.tolist() == [[[[0, 255]], [[1, 2]]]]


def test_a_text_has_128_tokens_at_most_and_an_image_the_models_own():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    vit, bert = (
        dissect(empty_backbone(c, "classification")) for c in (config, BertConfig(num_hidden_layers=1))
    )
    assert (longest_row(bert, None), longest_row(bert, 64), longest_row(vit, None)) == (128, 64, 5)
    with pytest.raises(ConfigError, match=r"data\.max_length = 64 has no effect on images, .* 5 tokens each"):
        longest_row(vit, 64)


def test_a_tasks_own_mask_is_kept():
    batch = encoded([{"input_ids": [1, 2], "attention_mask": [1, 0]}]).batch(np.array([0, FILLER]), 3)
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_fillers_may_stand_anywhere_so_that_a_pack_is_one_gather():
    batch = encoded().batch(np.array([FILLER, 0, FILLER, 1]), 3)
    assert batch["weight"].tolist() == [0, 1, 0, 1]
    assert batch["input_ids"].tolist() == [[9, 9, 9], [1, 2, 3], [9, 9, 9], [4, 9, 9]]


def test_a_batch_never_writes_into_what_processes_share():
    shared = encoded()
    for values in (shared.lengths, shared.starts, *shared.lists.values(), *shared.numbers.values()):
        values.setflags(write=False)
    shared.batch(np.array([0, FILLER]), 3)["input_ids"].zero_()
    assert shared.batch(np.array([0]), 3)["input_ids"].tolist() == [[1, 2, 3]]


@settings(max_examples=30, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=1, max_size=6),
    tokens=st.integers(9, 12),
    data=st.data(),
)
def test_what_goes_in_comes_out_and_the_rest_is_padding(lists, tokens, data):
    rows = np.array(data.draw(st.lists(st.integers(-1, len(lists) - 1), min_size=1, max_size=8)))
    batch = encoded([{"input_ids": ids} for ids in lists], 9).batch(rows, tokens)
    for row, ids in zip(rows, batch["input_ids"].tolist(), strict=True):
        wanted = lists[row] if row >= 0 else []
        assert ids == wanted + [9] * (tokens - len(wanted))
    lengths = [len(lists[row]) if row >= 0 else 1 for row in rows]
    assert batch["attention_mask"].sum(1).tolist() == lengths


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "There are no rows to encode"),
        ([{"input_ids": []}], "Row 0 has 0 tokens, and 1 to 4 are possible"),
        ([{"input_ids": [1] * 5}], "Row 0 has 5 tokens, and 1 to 4 are possible"),
        ([{"label": 3}], "gave row 0 the features label .* input_ids among them"),
        (
            [{"input_ids": [1]}, {"input_ids": [1], "label": 3}],
            "gave row 1 the features input_ids, label and row 0",
        ),
        (
            [{"input_ids": [1], "labels": [1, 2]}],
            "feature 'labels' of row 0 is neither a number in every row nor",
        ),
        (
            [{"input_ids": [1], "box": np.zeros((1, 2))}, {"input_ids": [1], "box": np.zeros((1, 3))}],
            "feature 'box' of row 1 is neither .* nor an array of one shape",
        ),
        ([{"input_ids": [1], "text": "one"}], "features are numbers, found 'one'"),
    ],
)
def test_features_that_cannot_be_batched_are_named(rows, sentence):
    with pytest.raises(DataError, match=sentence):
        encoded(rows)


def test_a_row_is_never_cut_in_silence():
    with pytest.raises(DataError, match="Row 0 has 3 tokens and the batch 2"):
        encoded().batch(np.array([1, 0]), 2)


def test_more_rows_than_the_batch_holds_are_refused():
    with pytest.raises(DataError, match="2 rows do not fit into a batch of 1"):
        collate(encoded(), np.array([0, 1]), tokens=4, rows=1)


@pytest.mark.parametrize(
    ("length", "max_length", "padded"), [(1, 128, 8), (8, 128, 8), (9, 128, 16), (126, 127, 127), (0, 128, 8)]
)
def test_a_bucket_is_the_next_multiple_of_eight_within_the_longest(length, max_length, padded):
    assert bucket(length, 8, max_length) == padded


def test_a_row_longer_than_the_longest_has_no_bucket():
    with pytest.raises(DataError, match="129 tokens does not fit max_length = 128"):
        bucket(129, 8, 128)


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    num_epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 20),
    seed=st.integers(0, 2**60),
)
def test_a_plan_has_the_steps_that_the_assignment_is_priced_with(
    num_rows, batch_size, num_epochs, max_steps, seed
):
    plan = batch_plan(num_rows, batch_size, num_epochs, max_steps, seed)
    priced = Assignment(
        blocks=(0,),
        adapter=lora_on_top(1, 1, 1, targets=("query",)),
        batch_size=batch_size,
        num_epochs=num_epochs,
        max_steps=max_steps,
    )
    assert len(plan) == priced.num_steps(num_rows)
    again = batch_plan(num_rows, batch_size, num_epochs, max_steps, seed)
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))
    steps_per_epoch = -(-num_rows // batch_size)
    for start in range(0, len(plan) // steps_per_epoch * steps_per_epoch, steps_per_epoch):
        epoch = np.concatenate(plan[start : start + steps_per_epoch])
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = batch_plan(50, 50, num_epochs=2, seed=1)
    (other,) = batch_plan(50, 50, seed=2)
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()


def test_a_client_without_rows_has_no_plan():
    with pytest.raises(DataError, match="A client without rows has no steps"):
        batch_plan(0, 8)


def test_ids_are_kept_in_four_bytes():
    kept: Encoded = encoded()
    assert kept.lists["input_ids"].dtype == np.int32
    assert len(kept) == 2
