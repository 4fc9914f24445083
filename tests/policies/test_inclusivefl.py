"""InclusiveFL in whole runs: one head a depth, and a last block that learns from deeper clients."""

import pytest
import torch

from fedray.assignment import Assignment
from fedray.errors import PolicyError
from tiny_run import merged, played, save_fleet

# One block takes 75 KiB with its head, two 115 and all four 190 or so.
MEMORY_KIB = [90, 140, 400, 90, 140, 400, 90, 140]


@pytest.fixture
def by_depth(tiny, tmp_path):
    return merged(
        tiny,
        {
            "menu": {"ranks": [2], "depths": ["all"], "exits": [1, 2], "per_device_train_batch_size": [4]},
            "policy": "inclusivefl",
            "fleet": save_fleet(tmp_path / "unlike.csv", MEMORY_KIB),
            "rounds": {"num_rounds": 2, "clients_per_round": 8},
        },
    )


def test_everybody_has_the_one_head_of_its_depth(by_depth):
    progress = played(by_depth)
    given = [Assignment.from_json(row.assignment) for row in progress.clients]
    assert {(entry.cut, entry.exits) for entry in given} == {(1, (1,)), (2, (2,)), (4, ())}
    assert {row.outcome for row in progress.clients} == {"ok"}
    for row in progress.clients:
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)


def test_from_the_second_round_on_shallow_clients_learn_from_deep_ones(by_depth):
    one, two = (
        [
            played(merged(by_depth, {"aggregation": rule, "rounds": {"num_rounds": number}})).state.adapter
            for rule in ("inclusivefl", "coverage_mean")
        ]
        for number in (1, 2)
    )
    first, second = ([adapter.factors for adapter in pair] for pair in (one, two))
    assert all(torch.equal(first[0][site].b, first[1][site].b) for site in first[0])
    moved = {
        int(site.split(".")[2]) for site in second[0] if not torch.equal(second[0][site].b, second[1][site].b)
    }
    assert moved == {0, 1}


def test_what_untrained_clients_would_move_is_recorded(by_depth):
    first, second = played(by_depth).rounds
    assert first.drift == 0.0
    assert second.drift > 0.0


def test_it_refuses_a_menu_without_exits(tiny):
    with pytest.raises(PolicyError, match=r"the menu has none; give menu.exits, such as \[2, 4\]"):
        played(merged(tiny, {"policy": "inclusivefl"}))
