"""What a record says of the frozen model that a client has held."""

import numpy as np
import pytest

from fedray.holdings import Holdings
from fedray.report.assigned import mix
from fedray.report.reading import read_run
from fedray.report.tallies import device_classes, given
from fedray.told import held_so_far, in_runs
from left_run import client_record, leave, round_record
from report_page import Page
from tiny_run import merged, played, save_fleet

SIZES = {"stem": 20, "block.0": 30, "block.1": 30, "block.2": 15, "head": 5}
ROOMY = np.array([10**6])


def test_numbers_that_follow_each_other_are_told_as_one():
    assert in_runs([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert in_runs([]) == ""


def test_a_part_of_a_block_counts_as_the_block_and_a_share_is_of_bytes():
    store = Holdings(2)
    assert held_so_far(store, 0, SIZES) == ("", 0.0)
    store.receive(np.array([0]), {"stem": 20, "block.0": 30}, "fp32", ROOMY)
    store.receive(np.array([0]), {"block.2 in 4 bits": 3}, "bf16", ROOMY)
    assert held_so_far(store, 0, SIZES) == ("0, 2", pytest.approx(0.65))
    assert held_so_far(store, 1, SIZES) == ("", 0.0)
    assert held_so_far(Holdings(2, preinstalled=True), 1, SIZES) == ("0-2", 1.0)


def test_under_cuts_clients_hold_what_lies_below_theirs_and_never_less_than_before(tiny, tmp_path):
    config = merged(
        tiny,
        {
            "fleet": save_fleet(tmp_path / "rich.csv", [4096] * 8),
            "menu": {"ranks": [2], "depths": ["all"], "cuts": [1, 3], "whole": False},
            "rounds": {"num_rounds": 2, "clients_per_round": 8},
        },
    )
    progress = played(config)
    last: dict[int, float] = {}
    for record in progress.clients:
        assert record.held_share >= last.get(record.client_id, 0.0)
        last[record.client_id] = record.held_share
        if record.outcome == "ok":
            assert record.held_blocks in ("0", "0-2")
            assert 0 < record.held_share < 1


def test_the_report_says_who_held_how_much_where_somebody_did_not_hold_all(tmp_path):
    whole = [client_record(1, client, held_share=1.0, held_blocks="0-5") for client in range(8)]
    part = [client_record(1, client, held_share=0.25 * (1 + client % 4)) for client in range(8)]
    texts = []
    for name, clients in (("whole", whole), ("part", part)):
        run = read_run(leave(tmp_path / name, [round_record(1, clients, 0.5)], clients, []))
        texts.append(Page(mix(given(run), device_classes(run)).body).text)
    assert "ever reached a client" not in texts[0]
    assert "What of the frozen model has ever reached a client" in texts[1]
    # Of the class with all of it two clients; of that with a quarter none.
    assert "laptop22100 %100 %" in texts[1]
    assert "phone-low2025 %25 %" in texts[1]
