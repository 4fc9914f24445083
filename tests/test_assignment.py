"""Assignments: what they say of themselves, that they survive JSON, and what they refuse."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, Lora, lora_on_top, weights_on_top
from fedray.errors import ConfigError
from fedray.width import Width

TOP_TWO = Assignment(blocks=tuple(range(6)), adapter=lora_on_top(6, 2, 8, targets=("query", "value")))

CODECS = ("none", "bf16", "int8", "int4", "top1", "top99", "rank1", "rank16")


@st.composite
def assignments(draw):
    num_blocks = draw(st.integers(1, 5))
    ranks = draw(st.lists(st.integers(0, 64), min_size=num_blocks, max_size=num_blocks))
    targets = draw(st.lists(st.sampled_from(["query", "key", "q_proj"]), min_size=1, max_size=3, unique=True))
    lora = Lora(ranks=tuple(ranks), targets=tuple(targets), scale=draw(st.floats(1e-3, 1e3)))
    lora = dataclasses.replace(lora, train_a=draw(st.booleans()))
    return Assignment(
        blocks=tuple(range(num_blocks)),
        adapter=lora if any(ranks) else HeadOnly(),
        dtype=draw(st.sampled_from(["fp32", "bf16"])),
        recompute=any(ranks) and draw(st.booleans()),
        batch_size=draw(st.integers(1, 256)),
        num_epochs=draw(st.integers(1, 9)),
        max_steps=draw(st.none() | st.integers(1, 99)),
        up_codec=draw(st.sampled_from(CODECS)),
        down_codec=draw(st.sampled_from(CODECS)),
    )


def test_a_rank_on_the_top_two_of_six_blocks_leaves_the_lower_four_frozen():
    assert TOP_TWO.adapter.ranks == (0, 0, 0, 0, 8, 8)
    assert (TOP_TWO.first_trained_block, TOP_TWO.num_trained_blocks) == (4, 2)
    assert (TOP_TWO.max_rank, TOP_TWO.sum_of_ranks) == (8, 16)


def test_a_head_alone_trains_no_block():
    head = Assignment(blocks=(0, 1), adapter=HeadOnly())
    assert head.first_trained_block is None
    assert (head.num_trained_blocks, head.max_rank, head.sum_of_ranks) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [({}, 16, 2), ({}, 17, 3), ({"num_epochs": 2}, 17, 6), ({"max_steps": 5}, 17, 5), ({}, 0, 0)],
)
def test_steps_are_whole_batches_of_every_epoch_unless_max_steps_says_otherwise(changes, rows, steps):
    assert dataclasses.replace(TOP_TWO, **changes).num_steps(rows) == steps


def test_an_assignment_reads_as_a_table_says_it():
    assert str(TOP_TWO) == "rank 8 on 2 of 6 blocks, batch 8"
    low = dataclasses.replace(TOP_TWO, recompute=True, dtype="bf16", batch_size=4)
    assert str(low) == "rank 8 on 2 of 6 blocks, bf16, recompute, batch 4"
    mixed = Assignment(blocks=(0, 1), adapter=Lora(ranks=(4, 2), targets=("query",)))
    assert str(mixed) == "rank 2/4 on all 2 blocks, batch 8"
    b_alone = Assignment(blocks=(0, 1), adapter=Lora(ranks=(4, 4), targets=("query",), train_a=False))
    assert str(b_alone) == "rank 4 (B alone) on all 2 blocks, batch 8"
    assert str(Assignment(blocks=(0, 1), adapter=HeadOnly())) == "head only over 2 blocks, batch 8"


@settings(max_examples=60, deadline=None)
@given(assignments())
def test_json_gives_back_an_equal_assignment_with_an_equal_hash(assignment):
    again = Assignment.from_json(assignment.to_json())
    assert again == assignment
    assert hash(again) == hash(assignment)
    assert again.to_json() == assignment.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "in ascending order, found \\(\\)"),
        ({"blocks": (2, 0)}, "in ascending order, found \\(2, 0\\)"),
        ({"blocks": (0, 2), "split": True}, "Below a cut a client runs blocks 0, 1, ... in order"),
        ({"dtype": "fp16"}, "dtype is one of fp32, bf16, found 'fp16'"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, found 0"),
        ({"max_steps": 0}, "max_steps must be at least 1 or absent, found 0"),
        ({"blocks": (0, 1)}, "2 blocks, 6 ranks"),
        ({"adapter": HeadOnly(), "recompute": True}, "recompute needs a trained block"),
        ({"split": True}, "6 blocks and a tail of 0 are all 6"),
        ({"split": True, "blocks": (0, 1), "tail": 4}, "2 blocks and a tail of 4 are all 6"),
        ({"split": True, "blocks": (0,), "tail": -1}, "tail counts trailing blocks, 0 or more, found -1"),
        ({"tail": 1}, "tail has no effect without split"),
        ({"local_loss": True}, "local_loss has no effect without split"),
        ({"cut_codec": "int8"}, "cut_codec has no effect without split"),
        ({"cut_codec": "int2"}, "cut_codec is one of none, bf16, int8, int4 or top1 to top99 .* 'int2'"),
        ({"up_codec": "int2"}, "up_codec is one of none, .* top99 .* or rank1, rank2, .* found 'int2'"),
        ({"down_codec": "rank0"}, "down_codec is one of none, .* found 'rank0'"),
        ({"split": True, "blocks": (0, 1), "cut_codec": "rank4"}, "cut_codec is one of .* found 'rank4'"),
        ({"split": True, "blocks": (0, 1), "local_loss": True}, "none has a rank"),
        (
            {"split": True, "blocks": (0, 1), "recompute": True},
            "recompute needs a trained block of the client",
        ),
        ({"width": Width(share=0.5)}, r"A width \(0.5 of ffn\) trains weights or the head; LoRA"),
        ({"adapter": Lora(ranks=(0,) * 6, targets=("query",))}, "one above 0, found \\(0, 0, 0, 0, 0, 0\\)"),
        ({"adapter": Lora(ranks=(8, 8, 8, 8, 8, -1), targets=("query",))}, "ranks are 0 or more"),
        ({"adapter": Lora(ranks=(8,) * 6, targets=())}, "at least one target linear"),
        ({"adapter": Lora(ranks=(8,) * 6, targets="query")}, "a tuple .* found 'query'"),
        ({"adapter": Lora(ranks=(8,) * 6, targets=("query",), scale=0.0)}, "above 0, found 0.0"),
        ({"adapter": Lora(ranks=(8,) * 6, targets=("query",), scale=float("nan"))}, "above 0, found nan"),
    ],
)
def test_what_cannot_run_is_refused_with_what_was_found(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TOP_TWO, **changes)


def test_under_a_cut_ranks_cover_the_whole_model_and_blocks_are_shared_out():
    cut = dataclasses.replace(TOP_TWO, blocks=(0, 1), split=True, tail=1)
    assert cut.client_blocks(6) == (0, 1, 5)
    assert cut.server_blocks(6) == range(2, 5)
    assert TOP_TWO.client_blocks(6) == (0, 1, 2, 3, 4, 5)
    assert TOP_TWO.server_blocks(6) == range(0)


def test_a_gradient_comes_down_only_where_something_below_the_cut_is_trained():
    lora = Lora(ranks=(0, 2, 4, 4, 4, 4), targets=("query",))
    above = dataclasses.replace(TOP_TWO, adapter=lora, blocks=(0, 1), split=True)
    assert above.gradient_comes_down
    assert not above.frozen_bottom
    frozen = dataclasses.replace(above, blocks=(0,))
    assert frozen.frozen_bottom
    assert not frozen.gradient_comes_down
    own = dataclasses.replace(above, local_loss=True)
    assert not own.gradient_comes_down
    assert not own.frozen_bottom
    assert not TOP_TWO.frozen_bottom
    assert not TOP_TWO.gradient_comes_down


def test_an_assignment_says_its_cut_in_a_few_words():
    cut = dataclasses.replace(TOP_TWO, blocks=(), split=True, tail=2, cut_codec="int8")
    assert "cut 0 tail 2 int8" in str(cut)


def test_an_assignment_says_what_its_update_and_its_start_are_sent_as():
    coded = dataclasses.replace(TOP_TWO, up_codec="top10", down_codec="bf16")
    assert str(coded) == "rank 8 on 2 of 6 blocks, up top10, down bf16, batch 8"


@pytest.mark.parametrize("depth", [0, 7])
def test_a_depth_outside_the_model_is_refused(depth):
    with pytest.raises(ConfigError, match=f"from the top, 1 to 6, found {depth}"):
        lora_on_top(6, depth, 8, targets=("query",))


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", '{"blocks": [0]}', '{"blocks": [0], "adapter": {"kind": "ia3"}}']
)
def test_text_that_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match="Not an assignment"):
        Assignment.from_json(text)


def test_json_with_a_refused_value_keeps_the_sentence_of_the_refusal():
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        Assignment.from_json(TOP_TWO.to_json().replace('"batch_size": 8', '"batch_size": 0'))


def test_who_adapts_every_block_and_who_trains_everything_is_told_apart():
    lora = lora_on_top(3, 3, 4, targets=("query",))
    full = weights_on_top(3, 3, "all", stem=True)
    adapting = {
        "every block": Assignment(blocks=(0, 1, 2), adapter=lora),
        "the top": Assignment(blocks=(0, 1, 2), adapter=lora_on_top(3, 2, 4, targets=("query",))),
        "below a cut": Assignment(blocks=(0,), adapter=lora, split=True),
        "all weights": Assignment(blocks=(0, 1, 2), adapter=full),
        "without the stem": Assignment(blocks=(0, 1, 2), adapter=dataclasses.replace(full, stem=False)),
        "biases": Assignment(blocks=(0, 1, 2), adapter=weights_on_top(3, 3, "bias", stem=True)),
    }
    assert [name for name, entry in adapting.items() if entry.adapts_all_it_runs] == ["every block"]
    assert [name for name, entry in adapting.items() if entry.trains_all_it_holds] == ["all weights"]
