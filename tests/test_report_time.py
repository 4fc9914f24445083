"""The report on time: what each client of a round did when, and what a run was held back by."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedray
from fedray.report.phases import phases_of, shares_of, slowest_over_median
from fedray.report.reading import Run, read_run
from left_run import client_record, leave, round_record
from tiny_run import merged, save_fleet

TRIP = {"receive_seconds": 2.0, "compute_seconds": 5.0, "send_seconds": 3.0, "virtual_seconds": 10.0}


@pytest.fixture
def two_rounds(tmp_path: Path) -> Run:
    """In both the second client is the last: 20 seconds over a cut, 10 of them waiting."""
    riding = {
        "receive_seconds": 2.0,
        "compute_seconds": 3.0,
        "waiting_seconds": 10.0,
        "send_seconds": 1.0,
        "virtual_seconds": 20.0,
        "cut": 2,
    }
    rounds = [[client_record(n, 0, **TRIP), client_record(n, 1, **riding)] for n in (1, 2)]
    records = [round_record(n, own, 0.5) for n, own in enumerate(rounds, 1)]
    return read_run(leave(tmp_path / "run", records, [c for own in rounds for c in own], []))


def test_what_is_left_of_a_client_with_a_cut_crossed_it(two_rounds):
    whole, riding = two_rounds.clients[:2]
    assert list(phases_of(whole).values()) == [2, 5, 0, 0, 3]
    assert list(phases_of(riding).values()) == [2, 3, 4, 10, 1]


def test_shares_are_of_each_rounds_last_client_and_of_everybody(two_rounds):
    shares = shares_of(two_rounds)
    assert list(shares.of_rounds.values()) == pytest.approx([0.1, 0.15, 0.2, 0.5, 0.05])
    # Two clients for 20 seconds: 4, 8, 4, 10 and 4 of 40, and 10 in which the first was done.
    assert list(shares.of_clients.values()) == pytest.approx([0.1, 0.2, 0.1, 0.25, 0.1])
    assert shares.idle == pytest.approx(0.25)
    assert shares.on_links == pytest.approx(0.35)
    assert slowest_over_median(two_rounds) == pytest.approx(20 / 15)


def test_the_timeline_names_its_clients_phases_units_and_who_did_not_make_it(tmp_path):
    own = [client_record(1, i, **TRIP) for i in range(3)]
    own[1] = replace(own[1], outcome="dropped", virtual_seconds=6.0, compute_seconds=4.0, send_seconds=0.0)
    folder = leave(tmp_path / "run", [round_record(1, own, 0.5)], own, [])
    page = fedray.write_report(folder).read_text()
    section = page[page.index("A round on the virtual clock</h2>") :]
    drawn = base64.b64decode(re.search(r"svg\+xml;base64,([^\"]+)", section).group(1)).decode()
    texts = re.findall(r"<!-- (.+?) -->", drawn)
    assert {"receiving", "computing", "sending", "dropped"} <= set(texts)
    assert "over the cut" not in texts
    assert "Virtual time since it was asked (s)" in texts
    assert "Client and device class" in texts
    assert "1, raspberry-pi-5" in texts


@pytest.mark.parametrize(
    ("fleet", "named"),
    [
        ({"up_bps": [1e3] * 8}, "Bound by communication"),
        ({"flops_per_s_fp32": [1e6] * 8}, "Bound by computing"),
        ({"flops_per_s_fp32": [2e7] * 7 + [2e5], "up_bps": [1e9] * 8, "down_bps": [1e9] * 8}, "stragglers"),
    ],
)
def test_what_holds_a_run_back_is_named(tiny: dict[str, Any], tmp_path: Path, fleet: Any, named: str):
    devices = save_fleet(tmp_path / "fleet.csv", [400] * 8, **fleet)
    rounds = {"num_rounds": 2, "clients_per_round": 8}
    done = fedray.simulate(merged(tiny, {"fleet": devices, "rounds": rounds}), out=tmp_path / "out")
    page = fedray.write_report(done.out).read_text()
    assert named in page
    if named == "Bound by communication":
        assert "Bound by computing" not in page
    # Every second of a client without a cut is in one of three phases.
    for record in done.clients:
        assert sum(phases_of(record).values()) == pytest.approx(record.virtual_seconds)


def verdicts_of(folder: Path, **changes: Any) -> str:
    """The page's section on what held back a run of six rounds of three clients."""
    rounds, clients = [], []
    for number in range(1, 7):
        own = [client_record(number, i, **TRIP, lost_share=changes.get("lost")) for i in range(3)]
        accuracy = changes["accuracy"][number - 1]
        clients += own
        rounds.append(replace(round_record(number, own, accuracy), disagreement=changes.get("apart")))
    page = fedray.write_report(leave(folder, rounds, clients, [])).read_text()
    return page[page.index("What held this run back</h2>") : page.index("A round on the virtual clock</h2>")]


CLIMBS, STANDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.1, 0.2, 0.3, 0.3, 0.28, 0.31)


@pytest.mark.parametrize(
    ("accuracy", "apart", "stalled"),
    [(STANDS, 0.97, True), (CLIMBS, 0.97, False), (STANDS, 0.5, False), (STANDS, None, False)],
)
def test_a_run_is_stalled_by_unlike_data_where_updates_part_and_nothing_is_gained(
    tmp_path, accuracy, apart, stalled
):
    assert ("Stalled by unlike data" in verdicts_of(tmp_path, accuracy=accuracy, apart=apart)) is stalled


def test_a_run_is_degraded_by_compression_where_most_of_an_update_does_not_arrive(tiny, tmp_path):
    pages = {}
    for codec in ("top1", "int8"):
        rounds = {"num_rounds": 1, "clients_per_round": 3}
        config = merged(
            tiny, {"menu": {"up_codecs": [codec]}, "rounds": rounds, "audit": {"distinct": False}}
        )
        done = fedray.run(config, out=tmp_path / codec)
        pages[codec] = fedray.write_report(done.out).read_text()
        assert all(record.lost_share > 0 for record in done.clients)
        assert done.rounds[0].disagreement > 0
    assert "Degraded by compression" in pages["top1"]
    assert "Degraded by compression" not in pages["int8"]
    assert "Disagreement of a round" in pages["int8"]
