"""Whole runs with cuts: in this process, with server and clients on Ray, and when somebody is lost."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from fedray.adapter import Adapter
from fedray.config import load_config
from fedray.engine import run
from fedray.errors import ConfigError, PolicyError
from fedray.scene import furnish
from fedray.server.lockstep import run_lockstep, updates_of
from fedray.serving import shard_blueprint
from fedray.training.client_half import PackHalves
from fedray.training.tap import Tap
from fedray.training.train import train_pack
from shop import BLOCKS, assign, build, job
from split_shop import SGD, in_process, targets_of
from tiny_run import RIDING, assert_same_adapter, assert_same_tensors, begun, merged, played, save_fleet

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SWEPT = {"engine": "zero", "num_shards": 2, "evaluation": "sweep"}
# Ends or holds up its process in the middle of a step, once, and never the one that is spared.
TASK = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from fedray.training.tasks import text_classification

@dataclass(kw_only=True)
class Unreliable(text_classification.TextClassification):
    marker: str
    spared: int
    what: str

    def loss(self, forward, batch):
        here = "deepspeed" in __import__("sys").modules
        if os.getpid() != self.spared and here == (self.what == "shard") and self.is_first():
            if self.what == "client":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(forward, batch)

    def is_first(self):
        # Two may be here at once, and one of them alone makes the file.
        try:
            (Path(self.marker) / "done").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
"""


@pytest.fixture
def cuts(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    policy = tmp_path / "cuts.py"
    policy.write_text(RIDING)
    changes = {
        "menu": {"cuts": [1, 2], "tails": [0, 1]},
        "policy": str(policy),
        "rounds": {"num_rounds": 2, "clients_per_round": 6},
        "fleet": {"name": tiny["fleet"]},
    }
    return merged(tiny, changes)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


def test_some_clients_have_a_cut_some_not_and_counted_bytes_are_the_predicted_ones(cuts):
    progress = played(cuts)
    ridden = [record for record in progress.clients if record.cut is not None]
    assert {record.cut for record in ridden}
    assert [record for record in progress.clients if record.cut is None]
    for record in ridden:
        assert record.outcome == "ok"
        assert record.boundary_up_bytes == record.predicted_boundary_up_bytes > 0
        assert record.boundary_down_bytes == record.predicted_boundary_down_bytes
        assert record.up_bytes == record.predicted_up_bytes
        assert record.down_bytes == record.predicted_down_bytes
    audited = [record for record in progress.clients if record.measured_peak_bytes is not None]
    assert all(r.measured_peak_bytes <= r.memory_bytes for r in audited)
    assert progress.rounds[-1].waiting_seconds >= 0


# FLoRA and FedEx-LoRA keep a change of the frozen weights, which both sides of a cut run with.
@pytest.mark.parametrize("rule", ["factor_mean", "flora", "fedex_lora"])
def test_with_an_adapter_for_each_client_a_cut_changes_nothing_of_what_is_learnt(cuts, tmp_path, rule):
    ends, epochs = [], 2 if rule == "factor_mean" else 1
    for split in (True, False):
        policy = tmp_path / f"split_{split}.py"
        policy.write_text(
            "import numpy as np\n"
            "def assign(cohort, offers):\n"
            f"    cut = np.array([entry.split == {split} for entry in offers.menu])\n"
            "    ranks = np.array([entry.adapter.ranks == (4, 4, 4, 4) for entry in offers.menu])\n"
            "    return offers.best((cut & ranks) * 10 + offers.cut)\n"
        )
        changes = {
            "policy": str(policy),
            "fleet": {"name": save_fleet(tmp_path / "rich.csv", [4096] * 8)},
            "training": {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": epochs},
            "aggregation": rule,
            "audit": {"distinct": False, "share": 0.0},
        }
        progress = played(merged(cuts, changes))
        assert {record.cut is not None for record in progress.clients} == {split}
        assert all(r.down_bytes == r.predicted_down_bytes for r in progress.clients)
        ends.append(progress.state)
    cut, whole = ends
    assert bool(whole.base_delta) == (rule != "factor_mean")
    for name, tensor in whole.adapter.tensors().items():
        assert torch.allclose(cut.adapter.tensors()[name], tensor, rtol=1e-4, atol=1e-6), name
    for site, change in whole.base_delta.items():
        found = cut.base_delta[site]
        product, expected = found.scale * found.b @ found.a, change.scale * change.b @ change.a
        assert (product - expected).norm() <= 1e-4 * expected.norm(), site


def test_evaluated_by_sweeps_or_on_whole_models_the_global_model_answers_alike(cuts):
    config = merged(cuts, {"menu": {"whole": False}, "rounds": {"num_rounds": 1}})
    swept, whole = (played(merged(config, {"server": server})) for server in (SWEPT, {"num_shards": 2}))
    assert_same_adapter(swept.state.adapter, whole.state.adapter)
    assert len(swept.evaluations) == len(whole.evaluations) > 0
    for one, other in zip(swept.evaluations, whole.evaluations, strict=True):
        assert one.accuracy == other.accuracy
        assert one.loss == pytest.approx(other.loss, rel=1e-6)


def test_evaluated_by_sweeps_no_process_beside_the_shards_is_given_what_only_the_server_runs(cuts):
    config = merged(cuts, {"menu": {"whole": False}, "runtime": "on_ray", "server": SWEPT})
    scene, _ = begun(config)
    _, stock, model = furnish(scene, "cpu")
    pieces = scene.anatomy.pieces()
    # Cuts of 1 and 2 of four blocks, and a tail of 1.
    held = {*pieces["stem"], *pieces["block.0"], *pieces["block.1"], *pieces["block.3"], *pieces["head"]}
    assert stock.weights["fp32"].keys() == held
    assert {name for name, p in model.named_parameters() if p.is_meta} == set(pieces["block.2"])


def test_settings_that_divide_no_weight_are_warned_of_and_a_disk_without_its_library_is_refused(
    cuts, tmp_path, monkeypatch
):
    plain = tmp_path / "plain.json"
    plain.write_text('{"zero_optimization": {"stage": 0}}')
    config = merged(cuts, {"menu": {"whole": False}, "server": {**SWEPT, "deepspeed": str(plain)}})
    scene, _ = begun(config)
    blueprint, _, model = furnish(scene, "cpu")
    with pytest.warns(UserWarning, match=r"ZeRO stage 0 shards nothing: each of 2 shards holds all"):
        found = shard_blueprint(scene, blueprint, model)
    assert found is not None
    monkeypatch.setattr("fedray.serving.find_library", lambda name: None)
    scene, _ = begun(merged(config, {"server": {"deepspeed": "zero3_nvme"}}))
    with pytest.raises(ConfigError, match=r"device is nvme, which DeepSpeed reads through libaio"):
        shard_blueprint(scene, blueprint, model)


def test_a_run_that_would_leave_nothing_to_the_shards_alone_is_refused(cuts, tmp_path):
    config = merged(cuts, {"menu": {"whole": False, "cuts": [1, 3]}, "server": SWEPT})
    with pytest.raises(ConfigError, match=r"cuts up to 3 with menu\.tails up to 1 are all 4 blocks; lower"):
        run(load_config(config), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"menu\.whole: true offers clients whole models; set"):
        load_config(merged(config, {"menu": {"whole": True}}))
    assert not (tmp_path / "out").exists()


def test_a_policys_own_cut_above_the_menus_is_refused_where_no_process_has_its_blocks(cuts, tmp_path):
    policy = tmp_path / "deeper.py"
    policy.write_text(
        "from dataclasses import replace\n"
        "class Deeper:\n"
        "    def menu(self, view):\n"
        "        return [replace(entry, blocks=(0, 1, 2)) for entry in view.menu if not entry.tail]\n"
        "    def assign(self, cohort, offers, state):\n"
        "        return offers.best(offers.sum_of_ranks), state\n"
    )
    changes = {"menu": {"whole": False}, "policy": str(policy), "server": SWEPT}
    with pytest.raises(
        PolicyError, match=r"no client's process has block 2: the menu's clients keep 0, 1, 3;"
    ):
        played(merged(cuts, changes))


def test_with_a_loss_at_the_cut_nothing_comes_down_and_both_sides_learn(cuts):
    changes = {
        "menu": {"tails": [0], "local_loss": [True], "whole": False, "depths": ["all"]},
        "policy": "largest_that_fits",
    }
    scene, start = begun(merged(cuts, changes))
    progress = played(merged(cuts, changes))
    before, after = start.state.adapter.tensors(), progress.state.adapter.tensors()
    assert {record.outcome for record in progress.clients} == {"ok"}
    assert all(r.boundary_down_bytes == r.predicted_boundary_down_bytes == 0 for r in progress.clients)
    assert all(r.boundary_up_bytes == r.predicted_boundary_up_bytes > 0 for r in progress.clients)
    assert all(r.up_bytes == r.predicted_up_bytes for r in progress.clients)
    held = {record.cut for record in progress.clients}
    for name in (*(f"head.at_{cut}.weight" for cut in held), "head.weight"):
        assert not torch.equal(before[name], after[name])
    moved = [site for site in before if site.endswith("lora_B") and after[site].any()]
    assert len({site.split(".")[2] for site in moved}) == scene.anatomy.num_blocks


def test_a_loss_at_the_cut_steps_the_bottom_as_a_shallow_model_alone_would(cuts):
    workshop = build("bert", [9, 6], SGD)
    deep = replace(assign("bert", BLOCKS, 2), max_steps=2)
    work = job(workshop, "bert", 0, replace(deep, blocks=(0, 1), split=True, local_loss=True))
    packs = {0: [work]}
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
    server = in_process(workshop, packs, num_shards=1)
    run_lockstep(clients, server, "sweep", shared=False)
    ((_, (update,)),) = updates_of(packs, clients, server)
    # The same bottom under the same head, with nothing above: what train_pack makes of two blocks.
    below = ("encoder.layer.0.", "encoder.layer.1.")
    bottom = {site: f for site, f in work.sent.factors.items() if site.startswith(below)}
    head = {n.removeprefix("at_2."): t for n, t in work.sent.head.items() if n.startswith("at_2.")}
    lora = replace(deep.adapter, ranks=(2, 2))
    shallow = replace(deep, blocks=(0, 1), adapter=lora)
    alone = replace(work, assignment=shallow, sent=Adapter(factors=bottom, head=head))
    (whole,) = train_pack(workshop, [alone])
    assert update.delta is not None
    assert whole.delta is not None
    for site, factors in whole.delta.factors.items():
        assert torch.allclose(update.delta.factors[site].a, factors.a, rtol=1e-3, atol=1e-6)
        assert torch.allclose(update.delta.factors[site].b, factors.b, rtol=1e-3, atol=1e-6)
    for name, tensor in whole.delta.head.items():
        assert torch.allclose(update.delta.head[f"at_2.{name}"], tensor, rtol=1e-3, atol=1e-6)


class Counted(Tap):
    """Of every message who sent or received it when, and how much it weighed."""

    def __init__(self):
        self.messages = []

    def crossed(self, job, crossing):
        self.messages.append((job.client_id, crossing.step, crossing.passing, crossing.message.num_bytes))


@pytest.mark.parametrize("server", [{"aggregation_interval": 2}, {"mode": "shared"}])
@pytest.mark.ray
def test_actors_with_a_server_in_one_process_compute_what_this_process_does(cuts, address, server):
    # What a client still owes of its updates goes with its job and comes back, and so does its own side.
    codecs = {"up_codecs": ["top10"], "down_codecs": ["int8"]}
    config = merged(cuts, {"server": server, "menu": codecs})
    here_heard, there_heard = Counted(), Counted()
    here = played(config, [here_heard])
    on_ray = merged(config, {"runtime": "on_ray", "ray": {"address": address, "num_actors": 2}})
    there = played(on_ray, [there_heard])
    assert here_heard.messages == there_heard.messages
    assert len(here_heard.messages) > 10
    assert_same_adapter(here.state.adapter, there.state.adapter)
    assert here.client_states.keys() == there.client_states.keys()
    for client, owed in here.client_states.items():
        assert_same_tensors(owed, there.client_states[client])


@pytest.mark.ray
def test_over_actors_black_boxes_are_told_what_they_are_told_here(cuts, address, tmp_path):
    policy = tmp_path / "kinds.py"
    policy.write_text(RIDING.replace("entry.tail for", "1 - entry.is_black_box for"))
    # What stays with a client between two averagings is where it looks from next.
    changes = {
        "menu": {"cuts": [2], "tails": [0], "perturbations": [0, 2]},
        "server": {"aggregation_interval": 2},
        "policy": str(policy),
        "fleet": save_fleet(tmp_path / "rich.csv", [4096] * 8),
    }
    here_heard, there_heard = Counted(), Counted()
    here = played(merged(cuts, changes), [here_heard])
    on_ray = {"runtime": "on_ray", "ray": {"address": address, "num_actors": 2}}
    there = played(merged(cuts, {**changes, **on_ray}), [there_heard])
    assert here_heard.messages == there_heard.messages
    passed = [passing for _, _, passing, _ in here_heard.messages]
    assert passed.count("loss_down") > passed.count("gradient_down") > 0
    assert_same_adapter(here.state.adapter, there.state.adapter)


@pytest.mark.ray
def test_a_round_whose_shard_dies_is_run_again_to_the_same_end(cuts, address, tmp_path):
    pytest.importorskip("deepspeed", reason="shards need the extra 'server'")
    config = merged(
        cuts,
        {
            "menu": {"whole": False},
            "rounds": {"num_rounds": 1},
            "runtime": "on_ray",
            "ray": {"address": address, "num_actors": 1},
            "server": SWEPT,
        },
    )
    here = played(merged(config, {"runtime": "local", "ray": {"address": None, "num_actors": None}}))
    doomed, marks = tmp_path / "unreliable.py", tmp_path / "marks"
    doomed.write_text(TASK)
    marks.mkdir()
    options = {"marker": str(marks), "spared": os.getpid(), "what": "shard"}
    again = played(merged(config, {"task": {"name": str(doomed), "options": options}}))
    assert len(list(marks.iterdir())) == 1
    assert_same_adapter(here.state.adapter, again.state.adapter)
    assert here.evaluations == again.evaluations
    assert {record.attempts for record in again.clients} == {2}


@pytest.mark.ray
def test_a_client_that_says_nothing_is_dropped_and_the_others_go_on(cuts, address, tmp_path):
    silent, marks = tmp_path / "unreliable.py", tmp_path / "marks"
    silent.write_text(TASK)
    marks.mkdir()
    options = {"marker": str(marks), "spared": os.getpid(), "what": "client"}
    config = merged(
        cuts,
        {
            "rounds": {"num_rounds": 1},
            "audit": {"distinct": False, "share": 0.0},
            "menu": {"whole": False, "tails": [1]},
            "policy": "largest_that_fits",
            "runtime": "on_ray",
            "ray": {"address": address, "num_actors": 2},
            "server": {"client_deadline_seconds": 12},
            "task": {"name": str(silent), "options": options},
        },
    )
    outcomes = [record.outcome for record in played(config).clients]
    assert "dropped" in outcomes
    assert "ok" in outcomes
