"""Plans: what every client would be given and what it would cost, before a weight is read."""

import json
import shutil
from pathlib import Path

import pytest

import fedray
from fedray.config import load_config
from fedray.errors import NothingFits
from fedray.planning import plan
from tiny_run import KIB, merged, played, save_fleet

KEYS = [
    "client_id", "memory_bytes", "assignment", "peak_bytes", "virtual_seconds",
    "up_bytes", "down_bytes", "provision_bytes",
]  # fmt: skip


@pytest.fixture
def mixed(tiny, tmp_path):
    """Two of the eight clients have too little memory for anything, one too little storage."""
    memory = [60, 140, 180, 400, 60, 140, 180, 400]
    storage = [2**30] * 7 + [30 * KIB]
    return merged(tiny, {"fleet": save_fleet(tmp_path / "fleet.csv", memory, storage_bytes=storage)})


def test_the_json_has_the_keys_that_the_issue_names_and_a_reason_where_nothing_is_given(mixed):
    clients = json.loads(fedray.plan(mixed).to_json())["clients"]
    assert [client["client_id"] for client in clients] == list(range(8))
    given = [client for client in clients if client["assignment"]]
    assert [client["client_id"] for client in given] == [1, 2, 3, 5, 6]
    assert all(list(client) == KEYS for client in given)
    for client in given:
        assert client["peak_bytes"] * 1.02 <= client["memory_bytes"]
        assert client["virtual_seconds"] > 0
        assert client["provision_bytes"] > client["down_bytes"] == client["up_bytes"] > 0
    left = {client["client_id"]: client for client in clients if not client["assignment"]}
    assert all(list(client) == [*KEYS, "reason"] for client in left.values())
    assert all(client["peak_bytes"] is client["virtual_seconds"] is None for client in left.values())
    assert left[0]["reason"].endswith("has 60.0 KiB")
    assert "of storage at least" in left[7]["reason"]


def test_the_plan_is_what_the_first_round_then_does(mixed):
    clients = json.loads(fedray.plan(mixed).to_json())["clients"]
    planned = {client["client_id"]: client for client in clients}
    for record in played(merged(mixed, {"rounds": {"num_rounds": 1, "clients_per_round": 8}})).clients:
        promised = planned[record.client_id]
        assert json.loads(record.assignment) == promised["assignment"]
        for column in ("virtual_seconds", "up_bytes", "down_bytes", "provision_bytes"):
            assert getattr(record, column) == promised[column]
        assert record.predicted_peak_bytes == promised["peak_bytes"]


def test_the_table_names_every_client_with_what_it_gets_or_why_not(mixed):
    lines = plan(load_config(mixed)).to_table().splitlines()
    assert any(
        "laptop" in line and "400.0 KiB" in line and "rank 4 on all 4 blocks" in line for line in lines
    )
    assert any("watch" in line and "needs" in line for line in lines)
    assert "4 assignments on the menu" in lines[0]


def test_a_policy_s_own_menu_is_the_one_that_is_planned(tiny, tmp_path):
    policy = tmp_path / "short.py"
    policy.write_text(
        "class Short:\n"
        "    def menu(self, view): return view.menu[:1]\n"
        "    def assign(self, cohort, offers): return offers.best(offers.sum_of_ranks)\n"
    )
    planned = plan(load_config(merged(tiny, {"policy": str(policy)})))
    assert len(planned.menu) == 1
    assert {client.assignment for client in planned.clients} == {planned.menu[0]}


def test_no_weight_is_needed(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny["model"], tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    planned = plan(load_config({**tiny, "model": str(folder)}))
    assert len(planned.clients) == 8


def test_a_fleet_that_nothing_fits_has_no_plan(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", [64] * 8)
    with pytest.raises(NothingFits, match="None of 4 assignments fits any of 8 clients"):
        fedray.plan({**tiny, "fleet": fleet})
