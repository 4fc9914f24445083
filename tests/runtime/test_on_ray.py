"""Law L9 and what Ray adds: actors that die, reservations, weights read in place, clusters of others."""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from fedray.config import load_config
from fedray.engine import play_round, run
from fedray.environment import open_runtime
from fedray.errors import FedrayError, RuntimeFailure
from fedray.runtime import address, on_ray, ray_start
from fedray.runtime.carrier import AuditJob, TrainPack
from fedray.runtime.local import LocalRuntime
from fedray.runtime.on_ray import CarrierActor, Cluster, RayRuntime
from fedray.runtime.reservation import Reservation, amounts_in_words, lacking
from fedray.scene import furnish
from image_run import image_configuration
from tiny_run import (
    WALL,
    assert_same_adapter,
    assert_same_run,
    begun,
    merged,
    played,
    records,
    save_fleet,
)

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MIB = 2**20
ASKING = """
observables = {"grad_norm", "fisher"}
def assign(cohort, offers): return offers.best(offers.sum_of_ranks)
"""
# Ends its process in the middle of a pack, once, and never the one that is spared.
DEADLY = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from fedray.training.tasks import text_classification

@dataclass(kw_only=True)
class Deadly(text_classification.TextClassification):
    marker: str
    spared: int
    times: int = 1

    def loss(self, forward, batch):
        if os.getpid() != self.spared and any(map(self.is_first, range(self.times))):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(forward, batch)

    def is_first(self, time):
        # Two may be here at once, and one of them alone makes the file.
        try:
            (Path(self.marker) / str(time)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """The address of a cluster of two unlike nodes that somebody else started."""
    cluster = Nodes()
    cluster.add_node(
        num_cpus=3,
        memory=600 * MIB,
        object_store_memory=120 * MIB,
        resources={"north": 1},
        include_dashboard=False,
    )
    cluster.add_node(num_cpus=3, memory=200 * MIB, object_store_memory=120 * MIB, resources={"south": 1})
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def played_on(config, address, num_actors):
    scene, progress = begun(config)
    blueprint, stock, _ = furnish(scene, "cpu")
    with closing(RayRuntime(blueprint, stock, Cluster(address=address, num_actors=num_actors))) as runtime:
        for number in range(1, scene.config.rounds.num_rounds + 1):
            play_round(scene, progress, runtime, number)
    return progress


def computed(progress):
    rows = [*progress.clients, *progress.rounds, *progress.evaluations]
    return [{n: getattr(row, n) for n in row.__slots__ if n not in WALL} for row in rows]


@pytest.mark.ray
# Two are those of the test below, of which one dies.
@pytest.mark.parametrize("num_actors", [1, 3])
def test_any_number_of_actors_computes_what_this_process_does(tiny, nodes, num_actors, tmp_path):
    policy = tmp_path / "asking.py"
    policy.write_text(ASKING)
    # What its server has is looked into by actors, too, and shadows are trained by them, two in a pack.
    attacks = {"updates": True, "labels": True, "membership": True, "shadows": 4, "shadow_epochs": 1}
    changes = {"rounds": {"num_rounds": 2}, "aggregation": "flora", "policy": str(policy), "attacks": attacks}
    config = merged(tiny, changes)
    here, there = played(config), played_on(config, nodes, num_actors)
    assert_same_adapter(here.state.adapter, there.state.adapter)
    assert here.state.base_delta.keys() == there.state.base_delta.keys()
    assert computed(here) == computed(there)
    assert "fisher" in here.clients[0].statistics
    assert here.rounds[-1].words_found is not None
    assert here.rounds[-1].membership_ratio_auc is not None
    assert {record.attempts for record in there.clients} == {1}


@pytest.mark.ray
def test_images_kept_in_bytes_give_the_same_bits_on_actors(home, nodes, tmp_path):
    config = merged(image_configuration(tmp_path), {"rounds": {"num_rounds": 1}, "menu": {"cuts": []}})
    here, there = played(config), played_on(config, nodes, 1)
    assert_same_adapter(here.state.adapter, there.state.adapter)
    assert computed(here) == computed(there)


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_the_result_is_the_same(tiny, nodes, tmp_path):
    task, marks = tmp_path / "deadly.py", tmp_path / "marks"
    task.write_text(DEADLY)
    marks.mkdir()
    options = {"marker": str(marks), "spared": os.getpid()}
    config = merged(
        tiny,
        {
            "task": {"name": str(task), "options": options},
            "audit": {"distinct": False, "share": 0.0},
            "rounds": {"num_rounds": 2},
            "runtime": "on_ray",
            "ray": {"address": nodes, "num_actors": 2},
        },
    )
    run(load_config(config), tmp_path / "there")
    assert len(list(marks.iterdir())) == 1
    attempts = [row["attempts"] for row in records(tmp_path / "there", "clients", drop=())]
    assert 1 <= attempts.count(2) <= 2  # a pack has two clients at most
    assert attempts.count(1) == len(attempts) - attempts.count(2)
    here = {name: value for name, value in config.items() if name != "ray"}
    run(load_config({**here, "runtime": "local"}), tmp_path / "here")
    assert_same_run(tmp_path / "there", tmp_path / "here")
    # The cluster was somebody else's: it is still there, and so is nothing of ours.
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 6


@pytest.mark.ray
def test_a_pack_that_outlives_nobody_is_given_up(tiny, nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MAX_ATTEMPTS", 1)
    task, marks = tmp_path / "deadly.py", tmp_path / "marks"
    task.write_text(DEADLY)
    marks.mkdir()
    options = {"marker": str(marks), "spared": os.getpid(), "times": 99}
    config = merged(
        tiny,
        {
            "task": {"name": str(task), "options": options},
            "rounds": {"num_rounds": 1},
            "audit": {"distinct": False, "share": 0.0},
        },
    )
    with pytest.raises(RuntimeFailure, match="A pack of clients was lost with 1 actors one after the other"):
        played_on(config, nodes, 1)
    assert len(list(marks.iterdir())) == 1


class Inspected(CarrierActor):
    """A carrier that lets a test look at the memory it computes on."""

    def __init__(self, blueprint, stock):
        super().__init__(blueprint, stock)
        self._arrays = stock.weights["fp32"]
        self._rows = stock.rows.lists["input_ids"]

    def memory(self):
        """A digest of all weights; whether any may be written; whether torch and numpy share each."""
        model = self._carrier._workshop.backbones["fp32"].anatomy.model
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(tensors[name].detach().numpy().tobytes())
        large = [array for array in self._arrays.values() if array.nbytes > 256]
        shared = [tensors[name].data_ptr() == array.ctypes.data for name, array in self._arrays.items()]
        mapped = {_mapping_of(array.ctypes.data) for array in [*large, self._rows]}
        return digest.hexdigest(), any(array.flags.writeable for array in large), all(shared), mapped


def _mapping_of(pointer):
    with open("/proc/self/maps") as maps:
        for line in maps:
            bounds, *rest = line.split()
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low <= pointer < high:
                return " ".join(rest[:1] + rest[4:])
    return "nowhere"


@pytest.mark.ray
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's own map of memory")
def test_actors_read_weights_and_rows_where_ray_keeps_them_and_never_write(tiny, nodes):
    scene, progress = begun(merged(tiny, {"aggregation": "flora"}))
    asked = []

    class Noting(LocalRuntime):
        def carry_out(self, orders):
            asked.extend(orders)
            return super().carry_out(orders)

    blueprint, stock, _ = furnish(scene, "cpu")
    for number in (1, 2):
        play_round(scene, progress, Noting(blueprint, stock), number)
    ray_start.join(nodes, 1, None)
    actor = ray.remote(Inspected).options(num_cpus=1).remote(ray.put(blueprint), ray.put(stock))
    before, writable, shared, mapped = ray.get(actor.memory.remote())
    assert not writable
    assert shared
    assert all("plasma" in mapping or "/dev/shm" in mapping for mapping in mapped), mapped
    kinds = {type(order) for order in asked}
    assert {TrainPack, AuditJob} < kinds
    assert any(isinstance(order, TrainPack) and order.base_delta for order in asked)
    for order in asked:
        ray.get(actor.carry_out.remote(order))
    assert ray.get(actor.memory.remote())[0] == before
    ray.kill(actor)


def assert_held(south, north, memory_bytes):
    """What the cluster says is taken; its nodes report to it now and then, so it is asked until it knows."""
    until = time.monotonic() + 30
    wanted = pytest.approx({"south": south, "north": north, "memory": memory_bytes}, rel=0.01, abs=1e-6)
    while True:
        total, free = ray.cluster_resources(), ray.available_resources()
        held = {name: total[name] - free.get(name, 0) for name in ("south", "north", "memory")}
        if held == wanted or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert held == wanted


@pytest.mark.ray
def test_every_client_has_an_actor_with_what_it_declares_and_idle_ones_make_room(tiny, nodes, tmp_path):
    # 0 and 2 cannot both be in the south.
    places = ['{"south": 0.6}', '{"north": 0.5}', '{"south": 0.6}']
    memory_kib = [90 * 1024, 200 * 1024, 90 * 1024]
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib, resources=places)
    config = merged(
        tiny,
        {
            "fleet": fleet,
            "data": {"num_clients": 3},
            "rounds": {"num_rounds": 1, "clients_per_round": 3},
            "packs": {"clients_per_pack": 1},
        },
    )
    scene, progress = begun(
        merged(config, {"runtime": "on_ray", "ray": {"address": nodes, "clients_per_actor": 1}})
    )
    ray_start.join(nodes, 1, None)
    assert_held(0, 0, 0)
    blueprint, stock, model = furnish(scene, "cpu")
    with closing(open_runtime(scene, blueprint, stock, model)) as runtime:
        play_round(scene, progress, runtime, 1)
        assert_held(0.6, 0.5, (90 + 200) * MIB)
    assert computed(progress) == computed(played(config))


@pytest.mark.ray
def test_an_actor_that_nobody_has_room_for_is_named_with_its_numbers(tiny, nodes, monkeypatch):
    scene, progress = begun(tiny)
    blueprint, stock, _ = furnish(scene, "cpu")
    large = Reservation(memory_bytes=900 * MIB, resources={"north": 1})
    own = dict.fromkeys(range(8), large)
    runtime = RayRuntime(blueprint, stock, Cluster(address=nodes, own_actor=own))
    monkeypatch.setattr(on_ray, "START_SECONDS", 2)
    monkeypatch.setattr(on_ray, "PATIENCE_SECONDS", 0.5)
    with closing(runtime), pytest.raises(RuntimeFailure, match=r"1 CPUs, 900.0 MiB of memory, 1 north"):
        play_round(scene, progress, runtime, 1)
    with pytest.raises(RuntimeFailure, match=r"no room for \d actors.*the cluster has 6 CPUs"):
        RayRuntime(blueprint, stock, Cluster(address=nodes, num_actors=8))


@pytest.mark.ray
def test_a_process_in_one_cluster_is_not_taken_to_another(nodes, tiny):
    scene, _ = begun(tiny)
    blueprint, stock, _ = furnish(scene, "cpu")
    ray_start.join(nodes, 1, None)
    with pytest.raises(RuntimeFailure, match=r"'10.0.0.1:6379', and this process is in the cluster at"):
        RayRuntime(blueprint, stock, Cluster(address="10.0.0.1:6379"))


@pytest.fixture
def listener():
    """A port where something listens that is no Ray; it says what it is told to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (None, "timed out"),
        (b"", "something else than Ray"),
        (b"HTTP/1.1 400 Bad Request\r\n", "something else"),
    ],
)
def test_a_port_where_no_ray_answers_is_found_out_quickly(listener, words, reason, monkeypatch):
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.5)

    def answer():
        line, _ = listener.accept()
        with line:
            if words is not None:
                line.recv(99)
                line.sendall(words)
            else:
                threading.Event().wait(1.5)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises((OSError, ValueError), match=reason):
        address.refuse_silence(f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()


def test_a_port_where_nobody_listens_and_words_that_are_no_address_are_refused(listener):
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        address.refuse_silence(f"ray://127.0.0.1:{port}")
    for text in ("somewhere", "host:port", ":6379"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            address.refuse_silence(text)


def test_reservations_add_up_and_read_well():
    two = [Reservation(num_cpus=1, memory_bytes=MIB), Reservation(num_gpus=1, resources={"north": 0.5})]
    assert not lacking({"CPU": 2.0, "GPU": 1.0, "memory": MIB, "north": 0.5}, two)
    for name in ("CPU", "GPU", "memory", "north"):
        totals = {"CPU": 2.0, "GPU": 1.0, "memory": MIB, "north": 0.5}
        totals[name] -= 0.25
        assert lacking(totals, two) == {name}
    assert amounts_in_words(two[0].amounts()) == "1 CPUs, 1.0 MiB of memory"
    assert amounts_in_words({"node:10.0.0.1": 1.0, "object_store_memory": 9.0}) == "nothing"


def test_a_refused_order_comes_back_in_its_own_words():
    assert issubclass(RuntimeFailure, FedrayError)
    assert ray_start.said(RuntimeError("first\nlast.\n")) == "first"
    assert ray_start.said(
        RuntimeError("died in its creation task, at x\n  File y\nModuleNotFoundError: z")
    ) == ("ModuleNotFoundError: z")
