"""Runs in which some clients are told a loss alone: beside others, simulated and resumed."""

import pytest

import fedray
from fedray import checkpoint
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.engine import play_round
from fedray.errors import ConfigError, PolicyError
from fedray.training.tap import Tap
from tiny_run import assert_same_adapter, merged, opened, played, records, save_fleet

# A third of the clients are black boxes, a third get gradients at their cut, a third has the whole model.
POLICY = """
import numpy as np

def assign(cohort, offers):
    kind = np.array([0 if not entry.split else 1 + entry.is_black_box for entry in offers.menu])
    return offers.best((cohort.client_ids % 3)[None] == kind[:, None])
"""
TRAINED = ("loss", "measured_peak_bytes", "wall_seconds", "attempts", "statistics", "accuracy", "drift",
           "lost_share", "disagreement")  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    policy = folder / "kinds.py"
    policy.write_text(POLICY)
    changes = {
        "menu": {"ranks": [2], "depths": ["all"], "cuts": [2], "perturbations": [0, 2]},
        "training": {"optim": "sgd", "learning_rate": 0.05, "perturbation_scale": 0.01},
        "policy": str(policy),
        "rounds": {"num_rounds": 2, "clients_per_round": 6},
        "fleet": save_fleet(folder / "rich.csv", [4096] * 8),
    }
    return merged(tiny, changes)


def black_boxes(progress):
    return [r for r in progress.clients if Assignment.from_json(r.assignment).is_black_box]


class Heard(Tap):
    def __init__(self):
        self.messages = []

    def crossed(self, job, crossing):
        message = crossing.message
        self.messages.append(
            (job.client_id, crossing.step, crossing.passing, message.num_bytes, message.loss)
        )


def test_what_crosses_and_what_it_takes_is_what_was_predicted_and_nothing_but_losses_comes_down(kinds):
    heard = Heard()
    progress = played(kinds, [heard])
    found = black_boxes(progress)
    assert len({r.client_id for r in found}) > 1
    for record in found:
        assert record.outcome == "ok"
        assert record.num_steps == -(-record.num_rows // 4)
        # Two looks along each of two directions, and four bytes for each.
        assert record.boundary_down_bytes == record.predicted_boundary_down_bytes == record.num_steps * 4 * 4
        assert record.boundary_up_bytes == record.predicted_boundary_up_bytes
        assert record.num_messages == record.num_steps * 4 * 2
        assert (record.up_bytes, record.down_bytes) == (
            record.predicted_up_bytes,
            record.predicted_down_bytes,
        )
        if record.measured_peak_bytes is not None:
            assert record.measured_peak_bytes == pytest.approx(record.predicted_peak_bytes, rel=0.02)
    assert any(record.measured_peak_bytes for record in found)
    ids = {record.client_id for record in found}
    assert {passing for client, _, passing, _, _ in heard.messages if client in ids} == {
        "states_up",
        "loss_down",
    }
    of_others = {passing for client, _, passing, _, _ in heard.messages if client not in ids}
    assert of_others == {"states_up", "gradient_down"}


def test_neither_packs_nor_a_break_nor_a_simulation_change_anything(kinds, tmp_path):
    whole = played(kinds)
    apart = played(merged(kinds, {"packs": {"clients_per_pack": 1}}))
    for name, tensor in whole.state.adapter.tensors().items():
        other = apart.state.adapter.tensors()[name]
        assert (tensor - other).norm() <= 1e-3 * tensor.norm(), name
    scene, progress, runtime = opened(kinds)
    play_round(scene, progress, runtime, 1)
    checkpoint.save(tmp_path, progress)
    again = checkpoint.load(tmp_path)
    play_round(scene, again, runtime, 2)
    runtime.close()
    assert_same_adapter(again.state.adapter, whole.state.adapter)
    run = fedray.run(kinds, out=tmp_path / "run")
    simulated = fedray.simulate(kinds, out=tmp_path / "simulated")
    for name in ("clients", "rounds"):
        assert records(simulated.out, name, TRAINED) == records(run.out, name, TRAINED)


def test_what_lies_above_a_black_boxs_cut_is_moved_by_others_alone(kinds):
    alone = merged(kinds, {"menu": {"perturbations": [2], "whole": False}, "policy": "everybody_smallest"})
    with pytest.warns(
        UserWarning, match=r"All 1 assignments .* so the new head stays as it was drawn; list 0"
    ):
        scene, progress, runtime = opened(alone)
    before = {name: tensor.clone() for name, tensor in progress.state.adapter.tensors().items()}
    play_round(scene, progress, runtime, 1)
    runtime.close()
    assert len(black_boxes(progress)) == len(progress.clients)
    for name, tensor in progress.state.adapter.tensors().items():
        below = name.startswith(("encoder.layer.0.", "encoder.layer.1."))
        assert torch_equal(tensor, before[name]) is not below, name


def torch_equal(left, right):
    return bool((left == right).all())


def test_a_shared_server_whose_blocks_would_move_between_two_looks_is_refused(kinds, tmp_path):
    shared = {"server": {"mode": "shared"}}
    with pytest.raises(
        ConfigError, match=r"up to 2 under menu\.cuts are black-box clients, .* set server.mode: replica"
    ):
        load_config(merged(kinds, shared))
    policy = tmp_path / "own.py"
    policy.write_text(
        "from dataclasses import replace\n"
        "def assign(cohort, offers):\n"
        "    entry = next(entry for entry in offers.menu if entry.split)\n"
        "    return [replace(entry, perturbations=1) for _ in cohort.client_ids]\n"
    )
    own = merged(kinds, {**shared, "menu": {"perturbations": [0]}, "policy": str(policy)})
    own["training"].pop("perturbation_scale")
    with pytest.raises(
        PolicyError, match=r"takes the difference of two looks, and with server\.mode: shared"
    ):
        played(own)
