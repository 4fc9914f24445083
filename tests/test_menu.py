"""Menus from grids."""

import pytest

from fedray.assignment import HeadOnly
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu


def grid_of(**knobs):
    return Grid(num_blocks=6, targets=("query",), **knobs)


def test_two_ranks_two_depths_and_recomputation_are_eight_entries_small_to_large():
    menu = build_menu(grid_of(ranks=(8, 2), depths=("all", 2), recompute=(False, True)))
    assert [str(entry) for entry in menu] == [
        "rank 2 on 2 of 6 blocks, recompute, batch 8",
        "rank 2 on 2 of 6 blocks, batch 8",
        "rank 2 on all 6 blocks, recompute, batch 8",
        "rank 2 on all 6 blocks, batch 8",
        "rank 8 on 2 of 6 blocks, recompute, batch 8",
        "rank 8 on 2 of 6 blocks, batch 8",
        "rank 8 on all 6 blocks, recompute, batch 8",
        "rank 8 on all 6 blocks, batch 8",
    ]


def test_the_order_and_repeats_of_a_knobs_values_change_nothing():
    straight = build_menu(grid_of(ranks=(2, 8), batch_sizes=(4, 8), dtypes=("fp32", "bf16"), depths=(6, 1)))
    turned = build_menu(
        grid_of(ranks=(8, 2, 8), batch_sizes=(8, 4), dtypes=("bf16", "fp32"), depths=(1, "all"))
    )
    assert straight == turned
    assert len(straight) == 16


def test_the_head_alone_is_the_smallest_entry_and_has_nothing_to_recompute():
    menu = build_menu(grid_of(head_only=True, recompute=(False, True)))
    assert menu[0].adapter == HeadOnly()
    assert [entry.recompute for entry in menu] == [False, True, False]


def test_a_grid_of_the_head_alone_is_a_menu():
    assert len(build_menu(grid_of(head_only=True, ranks=()))) == 1


def test_local_work_scale_and_targets_reach_every_entry():
    [entry] = build_menu(grid_of(num_epochs=3, max_steps=5, scale=1.5, train_a=False))
    assert (entry.num_epochs, entry.max_steps, entry.adapter.scale) == (3, 5, 1.5)
    assert not entry.adapter.train_a
    assert entry.adapter.targets == ("query",)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ranks": ()}, "The menu is empty: 0 ranks, 1 depths"),
        (
            {"recompute": (True,), "perturbations": (2,)},
            "is empty: each combination of its values is refused",
        ),
        ({"batch_sizes": ()}, "0 batch_sizes"),
        ({"ranks": (0,)}, "ranks are 1 or more, found 0"),
        ({"depths": (7,)}, "1 to 6, found 7"),
        ({"dtypes": ("fp16",)}, "dtype is one of fp32, bf16, found 'fp16'"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        build_menu(grid_of(**knobs))


def test_codecs_of_updates_multiply_with_all_other_knobs_and_one_that_is_unknown_is_refused():
    menu = build_menu(grid_of(cuts=(2,), up_codecs=("none", "top10"), down_codecs=("none", "int8")))
    codecs = [(entry.split, entry.up_codec, entry.down_codec) for entry in menu]
    pairs = [("none", "int8"), ("none", "none"), ("top10", "int8"), ("top10", "none")]
    assert codecs == [(split, *pair) for split in (True, False) for pair in pairs]
    with pytest.raises(ConfigError, match=r"up_codec is one of none, .* found 'top'"):
        build_menu(grid_of(up_codecs=("top",)))


# Cuts.


def cuts_of(menu):
    return [(entry.cut if entry.split else "whole", entry.tail, entry.recompute) for entry in menu]


def test_every_cut_stands_beside_the_whole_model_from_low_to_high():
    menu = build_menu(grid_of(cuts=(3, 0), dtypes=("fp32",)))
    assert cuts_of(menu) == [(0, 0, False), (3, 0, False), ("whole", 0, False)]
    # A rank for each of the six blocks, whoever runs them.
    assert {entry.adapter.ranks for entry in menu} == {(8,) * 6}
    assert [entry.blocks for entry in menu] == [(), (0, 1, 2), (0, 1, 2, 3, 4, 5)]


def test_without_whole_models_every_entry_has_a_cut():
    assert cuts_of(build_menu(grid_of(cuts=(2,), whole=False))) == [(2, 0, False)]


def test_cuts_multiply_with_all_other_knobs():
    menu = build_menu(
        grid_of(
            cuts=(1, 2),
            tails=(0, 1),
            cut_codecs=("none", "int8"),
            ranks=(2, 8),
            dtypes=("fp32", "bf16"),
            batch_sizes=(4, 8),
            head_only=True,
        )
    )
    # Two ranks and the head alone, times two dtypes and two batches: twelve whole, eight cuts of each.
    assert len(menu) == 12 + 12 * 8


def test_what_an_assignment_refuses_is_left_out_of_the_grid():
    # Depth 1 of 6 trains block 5 alone: below a cut of 2 nothing is trained, so nothing is recomputed there,
    # unless the tail keeps block 5 on the client.
    menu = build_menu(grid_of(depths=(1,), cuts=(2,), tails=(0, 1), recompute=(False, True)))
    assert cuts_of(menu) == [
        (2, 1, True),
        ("whole", 0, True),
        (2, 0, False),
        (2, 1, False),
        ("whole", 0, False),
    ]
    # A local loss ends at the cut, so it has no tail, and trains a block below it.
    local = build_menu(grid_of(cuts=(0, 2), tails=(0, 1), local_loss=(False, True), whole=False))
    assert [(entry.cut, entry.tail) for entry in local if entry.local_loss] == [(2, 0)]


def test_a_cut_and_a_tail_that_together_leave_the_server_nothing_are_left_out_for_the_head_alone_too():
    menu = build_menu(grid_of(cuts=(2, 5), tails=(0, 2), head_only=True, ranks=(), whole=False))
    assert cuts_of(menu) == [(2, 0, False), (2, 2, False), (5, 0, False)]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"cuts": (2, 6)}, "cut 6 and tail 0 are all 6"),
        ({"cuts": (2,), "tails": (0, 4)}, "cut 2 and tail 4 are all 6"),
        ({"cuts": (2,), "cut_codecs": ("none", "int2")}, "cut_codec is one of none, .* found 'int2'"),
        ({"cuts": (0,), "local_loss": (False, True)}, "local_loss trains blocks below the cut"),
        ({"cuts": (2,), "local_loss": (True,), "tails": (1,), "whole": False}, "local_loss ends"),
        ({"cuts": (2,), "depths": (1,), "recompute": (True,), "whole": False}, "recompute needs a trained"),
        ({"whole": False}, "The menu is empty"),
    ],
)
def test_a_value_that_no_entry_can_have_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        build_menu(grid_of(**knobs))
