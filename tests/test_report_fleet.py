"""The page on devices, from numbers that can be counted by hand."""

import base64
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedray.config import load_config
from fedray.fitting import MOST, devices_of, kind_of
from fedray.record import ClassRecord, DeviceRecord, table
from fedray.report import write_report
from fedray.report.fleet import fleet
from fedray.report.reading import read_run
from fedray.scene import set_scene
from fedray.simulation.devices import simulated_scene
from left_run import CLASSES, MIB, assignment_of, leave, round_record, twelve_clients
from report_page import Page
from tiny_run import merged, save_fleet


def device(client_id, **changes):
    name = list(CLASSES)[client_id % 4]
    return DeviceRecord(
        num_devices=24,
        client_id=client_id,
        device_class=name,
        memory_bytes=(CLASSES[name][0] + client_id) * MIB,
        flops_per_s=4e9 * (1 + client_id % 4) ** 3,
        up_bps=2e6 * (1 + client_id),
        down_bps=2e7 * (1 + client_id),
        fits_whole=client_id % 4 > 1,
        fits_part=client_id % 4 > 0,
        fits_cut=False,
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    clients = twelve_clients(1) + twelve_clients(2)
    rounds = [round_record(n, [r for r in clients if r.round == n], 0.5) for n in (1, 2)]
    folder = leave(tmp_path_factory.mktemp("runs") / "edge", rounds, clients, [])
    pq.write_table(table([device(k) for k in range(24)], DeviceRecord), folder / "devices.parquet")
    half = ClassRecord(
        device_class="laptop", num_clients=6, num_holding=5, assignment="", model="3 of 6 blocks",
        accuracy=0.25, loss=2.0,
    )  # fmt: skip
    none = replace(half, device_class="phone-low", num_holding=2, model="", accuracy=None, loss=None)
    pq.write_table(table([half, none], ClassRecord), folder / "classes.parquet")
    return folder


def test_each_class_has_a_line_with_medians_what_fits_and_who_took_part(finished):
    page, run = Page(write_report(finished).read_text()), read_run(finished)
    row = page.row("phone-low", "6")
    # Its six are clients 0, 4, ... 20, with 112 MiB and so many more; 4 GFLOP/s; 2 Mbit/s a number up.
    assert row[2:6] == ["122 MiB", "4 GFLOP/s", "220 Mbit/s", "22 Mbit/s"]
    # No offer is under a cut, so no column is; nothing fits these.
    assert row[6:9] == ["0 (0 %)", "0 (0 %)", "6 (100 %)"]
    mine = [r for r in run.clients if r.device_class == "phone-low"]
    counted = sum(r.outcome == "ok" for r in mine)
    assert row[9:] == [str(len({r.client_id for r in mine})), str(len(mine)), str(counted)]
    assert page.row("raspberry-pi-5", "6")[6:9] == ["0 (0 %)", "6 (100 %)", "0 (0 %)"]


def test_the_figure_has_axes_with_units_and_a_name_for_each_class(finished):
    body = fleet(read_run(finished)).body
    (picture,) = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", body)
    texts = re.findall(r"<!-- (.+?) -->", base64.b64decode(picture).decode())
    assert {"Memory for the job (MiB)", "Arithmetic (GFLOP/s)"} <= {*texts}
    assert {"Downlink (Mbit/s)", "Uplink (Mbit/s)", *CLASSES} <= {*texts}


def test_what_a_class_can_run_by_itself_stands_beside_the_runs_own_accuracy(finished):
    page = Page(write_report(finished).read_text())
    assert page.row("laptop", "3 of 6 blocks") == ["laptop", "3 of 6 blocks", "5 of 6", "0.250", "2.000"]
    assert page.row("phone-low", "\u2013") == ["phone-low", "\u2013", "2 of 6", "\u2013", "\u2013"]
    assert "the same rows as the whole model's accuracy of 0.500" in page.text


def test_a_folder_without_devices_or_classes_has_a_page_all_the_same(finished, tmp_path):
    run = read_run(finished)
    folder = leave(tmp_path / "older", run.rounds, run.clients, [])
    page = Page(write_report(folder).read_text())
    assert not {"fleet", "on-device"} & set(page.anchors)


def test_what_fits_is_what_the_menu_offers_each_device(tiny, tmp_path):
    memory = [60, 120, 170, 600] * 2
    changes = {
        "menu": {"ranks": [2], "depths": ["all"], "exits": [1], "cuts": [1]},
        "fleet": save_fleet(tmp_path / "fleet.csv", memory),
    }
    found = devices_of(set_scene(load_config(merged(tiny, changes)), None))
    fits = [(d.fits_whole, d.fits_part, d.fits_cut) for d in found]
    assert [d.memory_bytes for d in found] == [kib * 1024 for kib in memory]
    assert fits[:4] == fits[4:]
    # One block alone needs less than the whole model, and so fits more of them.
    whole, part, _ = (sum(column) for column in zip(*fits, strict=True))
    assert whole < part
    assert fits[0] == (False, False, False)
    assert fits[3] == (True, True, True)


def test_of_a_large_fleet_so_many_are_drawn_and_their_shares_are_the_fleets(tiny):
    changes = {"fleet": {"name": "edge", "num_clients": 20_000, "memory_share": 0.001}}
    scene = simulated_scene(load_config(merged(tiny, changes)), None)
    found = devices_of(scene)
    assert len({d.client_id for d in found}) == len(found) == MOST
    assert {d.num_devices for d in found} == {20_000}
    names = scene.fleet.device_class(np.arange(20_000))
    shares = np.array([np.mean([d.device_class == n for d in found]) for n in np.unique(names)])
    assert np.abs(shares - [np.mean(names == n) for n in np.unique(names)]).max() < 0.02
    assert devices_of(scene) == found


def test_few_bits_make_a_part_and_a_cut_makes_a_cut():
    whole = assignment_of("laptop")
    kinds = [kind_of(one, 6) for one in (whole, replace(whole, weight_bits=8))]
    assert kinds == ["whole", "part"]
    assert kind_of(whole, 8) == "part"
