"""The report of a run in which some clients kept only some of the blocks."""

import dataclasses

from fedray.report import write_report
from fedray.report.reading import read_run
from fedray.report.tallies import spent
from left_run import assignment_of, client_record, leave, round_record, tiny_run
from report_page import Page


def with_cuts(folder):
    """Two phones at cut 2, one of them called off, a laptop at cut 4 that crossed a byte more, one whole."""
    crossing = {"predicted_boundary_up_bytes": 3000, "predicted_boundary_down_bytes": 2000}
    counted = {"boundary_up_bytes": 3000, "boundary_down_bytes": 2000}
    riding = {**crossing, **counted, "num_messages": 12, "virtual_seconds": 100.0}
    clients = [
        client_record(1, 0, assignment=split_json("phone-low", 2), cut=2, waiting_seconds=30.0, **riding),
        client_record(
            1,
            4,
            "late",
            assignment=split_json("phone-low", 2),
            cut=2,
            waiting_seconds=10.0,
            **riding | {"boundary_up_bytes": 500, "boundary_down_bytes": 0, "num_messages": 2},
        ),
        client_record(
            1,
            3,
            assignment=split_json("laptop", 4),
            cut=4,
            waiting_seconds=50.0,
            **riding | {"boundary_up_bytes": 3001},
        ),
        client_record(
            1, 7, assignment=dataclasses.replace(assignment_of("laptop"), up_codec="int8").to_json()
        ),
    ]
    rounds = [dataclasses.replace(round_record(1, clients, 0.5), server_joules=2500.0)]
    return leave(folder, rounds, clients, [])


def split_json(device_class, cut):
    whole = assignment_of(device_class)
    return dataclasses.replace(whole, blocks=tuple(range(cut)), split=True).to_json()


def test_a_run_with_cuts_shows_who_kept_how_many_blocks(tmp_path):
    page = Page(write_report(with_cuts(tmp_path / "run")).read_text())
    assert page.anchors.count("cuts") == 1
    assert page.row("Cut") == ["Cut", "phone-low", "laptop"]
    assert page.row("2") == ["2", "2 (100 %)", "\u2013"]
    assert page.row("4") == ["4", "\u2013", "1 (50 %)"]
    assert page.row("whole model") == ["whole model", "\u2013", "1 (50 %)"]
    # Ranks stand for all six blocks, whoever runs them.
    assert page.row("A")[:6] == ["A", "4", "2 of 6", "2", "no", "fp32"]
    # One update was sent coded; what they started from nobody's was.
    assert page.row("", "Rank")[6:8] == ["Batch (rows)", "Up as"]
    assert "Down as" not in page.row("", "Rank")
    assert sorted(page.row(code)[7] for code in "ABC") == ["int8", "none", "none"]


def test_waiting_is_shown_as_a_share_of_the_riders_time(tmp_path):
    page = Page(write_report(with_cuts(tmp_path / "run")).read_text())
    # 30 and 10 of 100 seconds each; the laptop without a cut waits for nothing and counts nowhere.
    assert page.row("phone-low", "2", "20.0 s") == ["phone-low", "2", "20.0 s", "30.0 s", "20 %", "14"]
    assert page.row("laptop", "1", "50.0 s") == ["laptop", "1", "50.0 s", "50.0 s", "50 %", "12"]
    assert "The server's own energy while it swept, by its declared watts: 2.5 kJ." in page.text


def test_bytes_over_the_cut_are_compared_where_a_client_was_not_called_off(tmp_path):
    page = Page(write_report(with_cuts(tmp_path / "run")).read_text())
    up, down = "2.9 KiB", "2.0 KiB"
    assert page.row("phone-low", "1", up) == ["phone-low", "1", up, up, down, down, "0"]
    assert page.row("laptop", "1", up)[-1] == "1"
    assert "In 1 of 2 client-rounds that ended ok under a cut, the bytes counted over it equal" in page.text


def test_bytes_over_cuts_are_bytes_on_the_wire(tmp_path):
    folder = with_cuts(tmp_path / "run")
    run = read_run(folder)
    moved = sum(r.up_bytes + r.down_bytes + r.provision_bytes for r in run.clients)
    cost = spent(run)
    assert cost.boundary_bytes.tolist() == [5000 + 500 + 5001]
    assert cost.wire_bytes.tolist() == [moved + 10501]
    page = Page(write_report(folder).read_text())
    assert "10.3 KiB over cuts" in page.text
    assert page.row("Round")[7:9] == ["Provision", "Over cuts"]
    assert page.row("1", "0.500")[8] == "10.3 KiB"


def test_a_run_without_cuts_says_nothing_of_them(tmp_path):
    page = Page(write_report(tiny_run(tmp_path / "run")).read_text())
    assert "cuts" not in page.anchors
    assert "Over cuts" not in page.row("Round")
    assert page.row("", "Rank")[:4] == ["", "Rank", "Trained blocks", "Re-compute"]
    assert "waiting for the server" not in page.text.lower()


def test_a_run_in_which_no_rider_ended_ok_has_no_verdict(tmp_path):
    folder = with_cuts(tmp_path / "run")
    clients = [dataclasses.replace(r, outcome="late") for r in read_run(folder).clients]
    leave(folder, [round_record(1, clients, 0.5)], clients, [])
    assert "No client-round with a cut ended ok" in Page(write_report(folder).read_text()).text


def test_where_rounds_overlapped_the_page_says_how_far_behind_updates_were(tmp_path):
    folder = tiny_run(tmp_path / "run")
    assert "Rounds overlapped" not in Page(write_report(folder).read_text()).text
    behind = [0, 3, 1]
    clients = [
        dataclasses.replace(r, staleness=behind[i % 3], outcome="ok")
        for i, r in enumerate(read_run(folder).clients)
    ]
    leave(folder, [round_record(1, clients, 0.5)], clients, [])
    used = [behind[i % 3] for i in range(len(clients))]
    said = f"was {sum(used) / len(used):.1f} versions on from what its client had been sent on average, and"
    assert f"{said} {max(used)} at most" in Page(write_report(folder).read_text()).text
