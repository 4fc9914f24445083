"""A whole run on three unlike nodes, every client where its row of the fleet puts it, two under a cut.

With FLoRA, so that what a rule keeps of the frozen weights reaches whole models, cut clients and shards.
"""

import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from fedray.config import load_config
from fedray.engine import run
from tiny_run import KIB, assert_same_run, merged, records, save_fleet

MIB = 2**20
# As in the recipes: a head, a server, a small node. Two shards and who evaluates take a CPU each, anywhere;
# Ray starts a process for each CPU of a node, needed or not.
NODES = {"head": 2, "server": 1, "board": 1}
# The server has room for two clients, the board for one; with so much memory they get unlike assignments.
PLACES = [
    f'{{"{name}": {share}, "num_cpus": 0}}'
    for name, share in (("server", 0.5), ("server", 0.5), ("board", 1))
]
MEMORY_KIB = [400, 180, 120]
# The first client keeps the whole model.
POLICY = """
import numpy as np

def assign(cohort, offers):
    cut = np.array([entry.split for entry in offers.menu])
    return offers.best((cut[:, None] == (cohort.client_ids > 0)) * 1000 + offers.sum_of_ranks[:, None])
"""


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster that somebody else started."""
    cluster = Cluster()
    for name, num_cpus in NODES.items():
        first = {"include_dashboard": False} if name == "head" else {}
        cluster.add_node(
            num_cpus=num_cpus,
            memory=200 * MIB,
            object_store_memory=120 * MIB,
            resources={name: 1},
            **first,
        )
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_run_on_three_unlike_nodes_is_the_run_of_this_process_bit_for_bit(tiny, address, tmp_path):
    pytest.importorskip("deepspeed", reason="shards need the extra 'server'")
    policy = tmp_path / "policy.py"
    policy.write_text(POLICY)
    config = merged(
        tiny,
        {
            "fleet": save_fleet(tmp_path / "fleet.csv", MEMORY_KIB, resources=PLACES),
            "data": {"num_clients": 3},
            "rounds": {"num_rounds": 2, "clients_per_round": 3},
            "packs": {"clients_per_pack": 1},
            "menu": {"depths": [1, 2, "all"], "cuts": [1, 2]},
            "policy": str(policy),
            "aggregation": "flora",
            "server": {"engine": "zero", "num_shards": 2},
        },
    )
    spread = merged(config, {"runtime": "on_ray", "ray": {"address": address, "clients_per_actor": 1}})
    held = []
    amounts = {"CPU": 3, "memory": sum(MEMORY_KIB) * KIB, "head": 0, "server": 1, "board": 1}
    wanted = pytest.approx(amounts, rel=0.01, abs=1e-6)

    def taken():
        total, free = ray.cluster_resources(), ray.available_resources()
        return {name: total[name] - free.get(name, 0) for name in amounts}

    def look(record):
        # The nodes report what they hold now and then, so they are asked until they know.
        until = time.monotonic() + 30
        while taken() != wanted and time.monotonic() < until:
            time.sleep(0.2)
        held.append(taken())

    run(load_config(spread), tmp_path / "there", show=look)
    # Only one node offers each name, so who holds it is there: two clients on the server, one on the board.
    assert held == [wanted, wanted]
    assert ray.cluster_resources()["CPU"] == sum(NODES.values())
    run(load_config(config), tmp_path / "here")
    assert_same_run(tmp_path / "there", tmp_path / "here")
    rows = records(tmp_path / "there", "clients", drop=())
    assert {row["attempts"] for row in rows} == {1}
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {(row["client_id"], row["cut"] is None) for row in rows} == {(0, True), (1, False), (2, False)}
