"""HeteroFL, FedRolex and what is like RaFFM: the widest part that fits, averaged over who holds it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel

import fedray
from fedray import checkpoint
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.engine import play_round, run
from fedray.errors import ConfigError, PolicyError
from fedray.model.anatomy import dissect
from fedray.model.slices import places_of
from fedray.policy_loading import load_policy
from fedray.training.own_weights import initial_weights
from tiny_run import assert_same_adapter, merged, opened, played, records, save_fleet

MENU = {
    "tunings": ["full"],
    "ranks": [],
    "depths": ["all"],
    "widths": [1.0, 0.5, 0.25],
    "width_axes": ["hidden", "head_dim", "ffn"],
}
SALIENT = {"width_window": "salient"}
# Room for a quarter, half or all of the model trained with AdamW.
MEMORY_KIB = [110, 220, 600, 110, 220, 600, 110, 220]


@pytest.fixture
def narrow(tiny, tmp_path):
    changes = {
        "menu": MENU,
        "fleet": save_fleet(tmp_path / "unlike.csv", MEMORY_KIB),
        "rounds": {"num_rounds": 2, "clients_per_round": 8},
    }
    return merged(tiny, changes)


def share_of(row):
    width = Assignment.from_json(row.assignment).width
    return 1.0 if width is None else width.share


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_everybody_trains_the_widest_part_that_fits_at_the_cost_that_was_predicted(narrow, tmp_path, name):
    result = run(load_config(merged(narrow, {"policy": name})), tmp_path / "run")
    assert {share_of(row) for row in result.clients} == {1.0, 0.5, 0.25}
    for row in result.clients:
        assert row.outcome == "ok"
        assert share_of(row) == {110: 0.25, 220: 0.5, 600: 1.0}[row.memory_bytes // 1024]
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
            assert row.measured_peak_bytes <= row.memory_bytes
    # The whole model is left as anybody loads it.
    left = AutoModel.from_pretrained(result.out / "model")
    for tensor_name, tensor in result.adapter.weights.items():
        torch.testing.assert_close(left.get_parameter(tensor_name).data, tensor)


def test_what_nobody_holds_keeps_its_bits_and_what_somebody_holds_moves(narrow, tmp_path):
    poor = save_fleet(tmp_path / "poor.csv", [220] * 8)
    config = load_config(merged(narrow, {"policy": "heterofl", "fleet": poor, "rounds": {"num_rounds": 1}}))
    result = run(config, tmp_path / "run")
    assert {share_of(row) for row in result.clients} == {0.5}
    before = AutoModel.from_pretrained(narrow["model"])
    name = "encoder.layer.2.attention.self.query.weight"
    now, old = result.adapter.weights[name], before.get_parameter(name).data
    # 2010.01264: the first half of each of four heads' four rows, and the first eight columns.
    held = torch.zeros(16, 16, dtype=torch.bool)
    held[torch.tensor([0, 1, 4, 5, 8, 9, 12, 13])[:, None], torch.arange(8)] = True
    assert torch.equal(now[~held], old[~held])
    assert (now[held] != old[held]).float().mean() > 0.9


def test_without_training_taking_parts_and_joining_them_changes_no_bit(narrow, tmp_path):
    """Claim R6: merge after extract is the identity, for prefixes, windows that move and salient units."""
    still = merged(narrow, {"training": {"learning_rate": 0.0, "head_learning_rate": 0.0}})
    for name, menu in (("heterofl", {}), ("fedrolex", {}), ("raffm_style", SALIENT)):
        result = run(load_config(merged(still, {"policy": name, "menu": menu})), tmp_path / name)
        before = AutoModel.from_pretrained(narrow["model"])
        for tensor_name, tensor in result.adapter.weights.items():
            assert torch.equal(tensor, before.get_parameter(tensor_name).data), tensor_name


def test_a_rolling_window_has_trained_every_unit_alike_after_a_turn_and_a_prefix_starves_some(narrow):
    """Claim R7, by counting who holds which of 24 feed-forward units over 24 rounds."""
    scene, _, runtime = opened(merged(narrow, {"policy": "heterofl"}))
    runtime.close()
    counts = {"fedrolex": np.zeros(24, int), "heterofl": np.zeros(24, int)}
    for number in range(24):
        view = scene.view(number, [])
        for policy, menu in (
            ("fedrolex", load_policy("fedrolex").menu(view)),
            ("heterofl", view.menu),
        ):
            (half,) = [entry.width for entry in menu if entry.width and entry.width.share == 0.5]
            units, _ = places_of(scene.anatomy, half)["encoder.layer.1.intermediate.dense.weight"]
            counts[policy][units.numpy()] += 1
    assert counts["fedrolex"].tolist() == [12] * 24
    assert counts["heterofl"].tolist() == [24] * 12 + [0] * 12


def test_the_most_salient_units_are_what_clients_train_and_a_simulation_needs_no_weights(narrow, tmp_path):
    poor = save_fleet(tmp_path / "poor.csv", [220] * 8)
    changes = {"policy": "raffm_style", "menu": SALIENT, "fleet": poor, "rounds": {"num_rounds": 1}}
    config = merged(narrow, changes)
    result = run(load_config(config), tmp_path / "run")
    assert {Assignment.from_json(row.assignment).width.window for row in result.clients} == {"salient"}
    before = AutoModel.from_pretrained(narrow["model"], add_pooling_layer=False)
    # A hidden unit's weights, in a model of 16 of them: of each tensor the axes that are as long.
    squares = sum(
        tensor.double().square().sum(dim=[d for d in range(tensor.dim()) if d != axis])
        for name, tensor in before.named_parameters()
        for axis in range(tensor.dim())
        if tensor.shape[axis] == 16 and hidden_axis(name, axis)
    )
    salient = squares.argsort(descending=True)[:8].sort().values
    now = result.adapter.weights["embeddings.word_embeddings.weight"]
    moved = (now != before.embeddings.word_embeddings.weight).any(0).nonzero().flatten()
    assert moved.tolist() == salient.tolist() != list(range(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fedray.scene.unit_order_of", lambda *_: pytest.fail("a simulation asked for the order")
        )
        simulated = fedray.simulate(config, out=tmp_path / "simulated")
    learnt = ("loss", "measured_peak_bytes", "wall_seconds", "attempts")
    assert records(simulated.out, "clients", learnt) == records(result.out, "clients", learnt)


def hidden_axis(name, axis):
    """Whether an axis of 16 is that of hidden states, which queries, keys and values read by their second."""
    if name.endswith(("query.weight", "key.weight", "value.weight")):
        return axis == 1
    if name.endswith(("query.bias", "key.bias", "value.bias")):
        return False
    return axis == 0 if name.endswith("attention.output.dense.weight") else True


@pytest.mark.parametrize(("policy", "menu"), [("fedrolex", {}), ("raffm_style", SALIENT)])
def test_a_run_resumed_after_a_round_ends_as_an_unbroken_one(narrow, tmp_path, policy, menu):
    narrow = merged(narrow, {"menu": menu})
    config = merged(narrow, {"policy": policy})
    unbroken = played_weights(narrow, policy, 2)
    scene, progress, runtime = opened_with_weights(config)
    try:
        play_round(scene, progress, runtime, 1)
        checkpoint.save(tmp_path, progress)
        progress = checkpoint.load(tmp_path)
        play_round(scene, progress, runtime, 2)
    finally:
        runtime.close()
    assert_same_adapter(progress.state.adapter, unbroken.state.adapter)


def test_parts_by_salience_that_nobody_asked_the_run_for_are_refused(narrow):
    class Own:
        def menu(self, view):
            widths = [entry.width and replace(entry.width, window="salient") for entry in view.menu]
            return [replace(entry, width=own) for entry, own in zip(view.menu, widths, strict=True)]

        def assign(self, cohort, offers):
            return offers.best(offers.cut)

    with pytest.raises(PolicyError, match=r"no order of the model's units by salience; set menu.width_wind"):
        fedray.plan(narrow, policy=Own())
    with pytest.raises(
        PolicyError, match=r"fedrolex moves its parts itself, and the menu has a width 0.*sal"
    ):
        fedray.plan(merged(narrow, {"policy": "fedrolex", "menu": SALIENT}))
    with pytest.raises(PolicyError, match=r"raffm_style trains all weights of the most salient parts"):
        fedray.plan(merged(narrow, {"policy": "raffm_style"}))


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_a_menu_without_narrower_models_is_refused(tiny, name):
    with pytest.raises(PolicyError, match=rf"{name} trains all weights of narrower models, and the menu has"):
        played(merged(tiny, {"policy": name}))


def test_a_width_that_the_family_cannot_have_is_a_sentence(narrow):
    with pytest.raises(Exception, match=r"heads are together as wide as hidden states"):
        opened(merged(narrow, {"policy": "heterofl", "menu": {"width_axes": ["heads"]}}))


def test_width_axes_without_widths_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"menu.width_axes has no effect without menu.widths below 1"):
        load_config(merged(tiny, {"menu": {"ranks": [], "tunings": ["full"], "width_axes": ["heads"]}}))


def played_weights(narrow, name, num_rounds):
    scene, progress, runtime = opened_with_weights(merged(narrow, {"policy": name}))
    try:
        for number in range(1, num_rounds + 1):
            play_round(scene, progress, runtime, number)
    finally:
        runtime.close()
    return progress


def opened_with_weights(config):
    """As the engine begins: the state has the pretrained weights of all that may be trained."""
    scene, progress, runtime = opened(config)
    model = AutoModel.from_pretrained(config["model"], add_pooling_layer=False)
    weights = initial_weights(dissect(model), scene.menu, scene.config.seed)
    adapter = replace(progress.state.adapter, weights=weights)
    progress.state = replace(progress.state, adapter=adapter)
    return scene, progress, runtime
