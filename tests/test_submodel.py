"""A client's submodel as a Hugging Face folder: what transformers makes of it is what fedray computes."""

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import fedray
from fedray import checkpoint
from fedray.adapter import WEIGHTS
from fedray.assignment import Assignment
from fedray.cli import main
from fedray.config import load_config
from fedray.engine import CACHE_DIR
from fedray.errors import ConfigError
from fedray.model.sites import StackedFactors
from fedray.rounds import sender
from fedray.scene import furnish, set_scene
from fedray.training.packed import PackedForward, course_of
from fedray.training.workshop import open_workshop
from tiny_run import merged, save_fleet, save_model

KINDS = {
    "ranks": {"menu": {"ranks": [4], "depths": [2]}},
    "8 bits": {"menu": {"ranks": [4], "depths": ["all"], "weight_bits": [8]}},
    "4 bits": {"menu": {"ranks": [4], "depths": ["all"], "weight_bits": [4]}},
    "zeros": {"menu": {"ranks": [4], "depths": ["all"], "sparsities": [0.5]}},
    "leading blocks": {"menu": {"ranks": [4], "depths": ["all"], "exits": [1, 2]}, "policy": "depthfl"},
    "blocks by lot": {"menu": {"ranks": [4], "depths": ["all"]}, "policy": "fedra"},
    "a part of the width": {
        "menu": {
            "tunings": ["full"],
            "ranks": [],
            "depths": ["all"],
            "widths": [0.5],
            "width_axes": ["hidden", "head_dim", "ffn"],
            "width_window": "salient",
        },
        "policy": "raffm_style",
    },
    "changes of the base": {"menu": {"ranks": [4], "depths": ["all"]}, "aggregation": "fedex_lora"},
}
# Two or three of the four blocks fit the first, all of them the second.
FLEET = [170, 600] * 4


def finished(tiny, tmp_path, changes):
    rounds = {"num_rounds": 1, "clients_per_round": 4}
    fleet = save_fleet(tmp_path / "fleet.csv", FLEET)
    config = merged(merged(tiny, {"rounds": rounds, "fleet": fleet, "audit": {"distinct": False}}), changes)
    return fedray.run(config, out=tmp_path / "run")


def answers_here(result, client):
    """Logits of the client's last assignment on some rows, computed as in a run; and the rows."""
    scene = set_scene(load_config(result.out / "config.yaml"), CACHE_DIR)
    blueprint, stock, _ = furnish(scene, "cpu")
    workshop = open_workshop(blueprint, stock)
    state = checkpoint.load(result.out).state
    assignment = Assignment.from_json([r for r in result.clients if r.client_id == client][-1].assignment)
    sent = sender(scene, state, 9)(assignment, client).adapter
    batch = workshop.pool.batch(np.arange(6), 16)
    factors = {
        site: StackedFactors(a=f.a[None], b=f.b[None], scale=torch.full((1, 1, 1), f.scale))
        for site, f in sent.factors.items()
    }
    own = {WEIGHTS + name: tensor[None] for name, tensor in sent.weights.items()}
    head = {name: tensor[None] for name, tensor in sent.head.items()}
    course = course_of(assignment, "memory_efficient", recompute=False)
    with torch.no_grad():
        return PackedForward(workshop.backbone_of(assignment), course, {**factors, **own}, head)(batch), batch


def answers_there(folder, batch):
    """The same by transformers, and a linear layer on the mean over real tokens."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    head = safetensors.torch.load_file(folder / "head.safetensors")
    with torch.no_grad():
        states = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1).float()
    return (states * real).sum(1) / real.sum(1) @ head["weight"].T + head["bias"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "changes of the base"])
def test_a_loaded_submodel_answers_as_the_client_would(tiny, tmp_path, kind):
    result = finished(tiny, tmp_path, KINDS[kind])
    client = result.clients[0].client_id
    done = fedray.export(result.out, client=client, out=tmp_path / "model")
    here, batch = answers_here(result, client)
    torch.testing.assert_close(answers_there(done.folder, batch), here, rtol=1e-4, atol=1e-5)
    assert len(AutoModel.from_pretrained(done.folder).encoder.layer) == len(done.assignment.blocks)
    assert AutoTokenizer.from_pretrained(done.folder)("w1 w2")["input_ids"]


def test_what_a_rule_changed_of_the_frozen_weights_is_merged_too(tiny, tmp_path):
    result = finished(tiny, tmp_path, KINDS["changes of the base"])
    state = checkpoint.load(result.out).state
    client = result.clients[0].client_id
    done = fedray.export(result.out, client=client, out=tmp_path / "model")
    site = next(iter(state.base_delta))
    before = AutoModel.from_pretrained(load_config(result.out / "config.yaml").model.name)
    after = AutoModel.from_pretrained(done.folder)
    change = after.get_submodule(site).weight - before.get_submodule(site).weight
    wanted = sum(f.scale * (f.b @ f.a) for f in (state.adapter.factors[site], state.base_delta[site]))
    torch.testing.assert_close(change, wanted, rtol=1e-3, atol=1e-6)


def test_a_causal_lm_is_exported_with_its_own_head(tiny, tmp_path):
    lm = {"model": save_model(tmp_path / "llama", "llama"), "task": "causal_lm"}
    result = finished(tiny, tmp_path, {**lm, "menu": {"ranks": [4], "depths": ["all"]}, "policy": "fedra"})
    client = result.clients[0].client_id
    done = fedray.export(result.out, client=client, out=tmp_path / "model")
    here, batch = answers_here(result, client)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    with torch.no_grad():
        there = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(there[real], here[real], rtol=1e-4, atol=1e-5)
    assert not (done.folder / "head.safetensors").exists()


def test_who_has_no_model_of_its_own_gets_a_sentence(tiny, tmp_path, capsys):
    cuts = {"menu": {"ranks": [2], "depths": ["all"], "cuts": [1], "whole": False}}
    result = finished(tiny, tmp_path, cuts)
    client = result.clients[0].client_id
    with pytest.raises(
        ConfigError, match="under a cut at 1 it has no model of its own; export another client"
    ):
        fedray.export(result.out, client=client, out=tmp_path / "model")
    with pytest.raises(ConfigError, match=f"Client 99 took part in no round of {result.out}"):
        fedray.export(result.out, client=99, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert main(["export", str(tmp_path), "--client", "1", "--out", str(tmp_path / "model")]) == 2
    assert "holds no run (no config.yaml)" in capsys.readouterr().err
