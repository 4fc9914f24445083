"""What the report says of what reached the model: which blocks were trained, by whom, and what was lost."""

from dataclasses import replace

import numpy as np
import pytest

import fedray
from fedray.assignment import Assignment, lora_on_top
from fedray.report.coverage import coverage_of
from left_run import assignment_of, client_record, leave, round_record
from tiny_run import merged, save_fleet


def on_top(depth, **changes):
    return Assignment(
        blocks=tuple(range(6)), adapter=lora_on_top(6, depth, 4, targets=("query",)), **changes
    ).to_json()


def test_a_block_is_covered_by_the_rows_of_who_trained_it_and_whose_update_counted():
    # 30 rows train the top two of six, 10 train all six, and a late one's 60 rows train nothing.
    clients = [
        client_record(1, 0, assignment=on_top(2), num_rows=30),
        client_record(1, 1, assignment=on_top(6), num_rows=10),
        client_record(1, 2, "late", assignment=on_top(6), num_rows=60),
    ]
    assert coverage_of(clients) == pytest.approx([0.25, 0.25, 0.25, 0.25, 1, 1])


def test_a_server_trains_blocks_for_its_riders_and_a_submodel_only_the_blocks_it_has():
    whole = Assignment.from_json(on_top(6))
    riding = replace(whole, blocks=(0, 1), split=True).to_json()
    own = replace(whole, blocks=(1, 4), adapter=replace(whole.adapter, ranks=(4, 4))).to_json()
    clients = [
        client_record(1, 0, assignment=riding, num_rows=20),
        client_record(1, 1, assignment=own, num_rows=20),
    ]
    assert coverage_of(clients) == pytest.approx([0.5, 1, 0.5, 0.5, 1, 0.5])
    assert not len(coverage_of([replace(one, outcome="dropped") for one in clients]))


def section_of(folder, clients, **of_rounds):
    rounds = [replace(round_record(1, clients, 0.5), **of_rounds)]
    page = fedray.write_report(leave(folder, rounds, clients, [])).read_text()
    return page[page.index("What held this run back</h2>") : page.index("A round on the virtual clock</h2>")]


TRIP = {"receive_seconds": 2.0, "compute_seconds": 5.0, "send_seconds": 3.0, "virtual_seconds": 10.0}


def test_blocks_that_few_train_are_named_and_those_that_all_train_are_not(tmp_path):
    few = [client_record(1, 0, assignment=on_top(2), num_rows=95, **TRIP),
           client_record(1, 1, assignment=on_top(6), num_rows=5, **TRIP)]  # fmt: skip
    said = section_of(tmp_path / "few", few)
    assert "Trained by few: blocks 0, 1, 2, 3 by at most 5 % of the clients" in said
    alike = section_of(tmp_path / "alike", [few[1]])
    assert "Trained by few" not in alike
    assert "Every block by 100 % of the clients" in alike


def test_what_each_codec_changed_stands_beside_how_many_updates_it_coded(tmp_path):
    coded = replace(assignment_of("laptop"), up_codec="int4").to_json()
    clients = [client_record(1, i, assignment=coded, lost_share=0.1 * (i + 1), **TRIP) for i in range(3)]
    said = section_of(tmp_path / "run", clients)
    for cell in ("int4", "3", "20.0 %", "30.0 %"):
        assert f">{cell}</td>" in said
    assert "What codecs changed" not in section_of(tmp_path / "plain", [client_record(1, 0, **TRIP)])


def test_a_rule_that_alone_moves_the_products_is_named(tmp_path):
    clients = [client_record(1, 0, **TRIP)]
    assert "Eroded by the rule" in section_of(tmp_path / "moves", clients, drift=0.3)
    assert "Eroded by the rule" not in section_of(tmp_path / "hardly", clients, drift=0.01)


def test_a_run_whose_clients_wait_for_a_slow_server_is_bound_by_it(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", [400] * 8, flops_per_s_fp32=[1e9] * 8, up_bps=[1e9] * 8,
                       down_bps=[1e9] * 8, rtt_seconds=[0.0] * 8)  # fmt: skip
    pages = {}
    for name, rate in (("slow", 1e6), ("quick", 1e13)):
        changes = {
            "fleet": fleet,
            "menu": {"ranks": [2], "depths": ["all"], "cuts": [1], "whole": False},
            "server": {"flops_per_s": rate},
            "rounds": {"num_rounds": 1, "clients_per_round": 8},
        }
        done = fedray.simulate(merged(tiny, changes), out=tmp_path / name)
        pages[name] = fedray.write_report(done.out).read_text()
    assert "Bound by the server" in pages["slow"]
    assert "Bound by the server" not in pages["quick"]


def test_a_run_whose_clients_each_hold_one_label_is_stalled_by_unlike_data(tiny, tmp_path):
    changes = {
        "data": {
            "partitioner": {"name": "pathological", "num_classes_per_partition": 1},
            "num_clients": 4,
        },
        "fleet": save_fleet(tmp_path / "fleet.csv", [400] * 4),
        "menu": {"ranks": [4], "depths": ["all"]},
        "training": {"learning_rate": 0.1, "num_train_epochs": 3},
        "rounds": {"num_rounds": 4, "clients_per_round": 4},
        "audit": {"distinct": False, "share": 0.0},
    }
    done = fedray.run(merged(tiny, changes), out=tmp_path / "run")
    assert np.median([one.disagreement for one in done.rounds]) > 1
    assert "Stalled by unlike data" in fedray.write_report(done.out).read_text()
