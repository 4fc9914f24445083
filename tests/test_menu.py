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
    [entry] = build_menu(grid_of(num_epochs=3, max_steps=5, scale=1.5))
    assert (entry.num_epochs, entry.max_steps, entry.adapter.scale) == (3, 5, 1.5)
    assert entry.adapter.targets == ("query",)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ranks": ()}, "The menu is empty: 0 ranks, 1 depths"),
        ({"batch_sizes": ()}, "0 batch_sizes"),
        ({"ranks": (0,)}, "ranks are 1 or more, found 0"),
        ({"depths": (7,)}, "1 to 6, found 7"),
        ({"dtypes": ("fp16",)}, "dtype is one of fp32, bf16, found 'fp16'"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        build_menu(grid_of(**knobs))
