"""Runs in which clients train the model's own weights: bytes as predicted, a model anybody loads, resumed."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from fedray import checkpoint
from fedray.assignment import Assignment, Lora
from fedray.config import load_config
from fedray.engine import play_round, run
from fedray.model.added import PROMPT
from fedray.model.anatomy import dissect
from fedray.training.own_weights import initial_weights
from tiny_run import assert_same_tensors, merged, opened, save_fleet

MENU = {"tunings": ["lora", "full", "bitfit"], "ranks": [2], "depths": [2, "all"]}


class InTurn:
    """Client k gets the k-th kind of assignment, so that all kinds are in one cohort."""

    def assign(self, cohort, offers, state):
        return cohort.client_ids % len(offers.menu), state


def changed(tiny, folder, **changes):
    fleet = save_fleet(folder / "roomy.csv", memory_kib=[4000] * 8)
    return merged(tiny, {"menu": MENU, "fleet": fleet, "rounds": {"num_rounds": 2}, **changes})


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    result = run(load_config(changed(tiny, folder)), folder / "run", policy=InTurn())
    return result, tiny["model"]


def test_kinds_train_beside_each_other_and_cost_what_was_predicted(mixed):
    result, _ = mixed
    given = [Assignment.from_json(row.assignment) for row in result.clients]
    assert len({type(entry.adapter) for entry in given} | {str(entry) for entry in given}) >= 5
    for row in result.clients:
        assert row.outcome == "ok"
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        assert row.measured_peak_bytes is None or row.predicted_peak_bytes == pytest.approx(
            row.measured_peak_bytes, rel=0.02
        )


def test_the_trained_model_is_an_ordinary_folder_with_its_tokenizer(mixed):
    result, base = mixed
    before, after = AutoModel.from_pretrained(base), AutoModel.from_pretrained(result.out / "model")
    assert len(AutoTokenizer.from_pretrained(result.out / "model")) == 48
    weights = result.adapter.weights
    assert weights
    for name, tensor in weights.items():
        torch.testing.assert_close(after.get_parameter(name).data, tensor)
    assert any(not torch.equal(before.get_parameter(name), weights[name]) for name in weights)
    for name, tensor in before.named_parameters():
        if name not in weights and not name.startswith("pooler"):  # which no backbone of a classifier has
            assert torch.equal(after.get_parameter(name), tensor)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_prompts_prefixes_and_ia3_train_beside_each_other_resume_and_load_with_peft(tiny, tmp_path):
    menu = {"tunings": ["ia3", "prompt", "prefix"], "prompt_tokens": [2, 5], "up_codecs": ["none", "int8"]}
    base = merged({**tiny, "menu": {}}, {"menu": {**menu, "per_device_train_batch_size": [4]}})
    fleet = save_fleet(tmp_path / "roomy.csv", memory_kib=[4000] * 8)
    config = load_config(merged(base, {"fleet": fleet, "rounds": {"num_rounds": 2, "clients_per_round": 8}}))
    result = run(config, tmp_path / "run", policy=InTurn())
    given = {str(Assignment.from_json(row.assignment)) for row in result.clients}
    assert len(given) == 8  # of IA3 and two lengths of the others, coded and not, one a client
    for row in result.clients:
        assert (row.up_bytes, row.down_bytes) == (row.predicted_up_bytes, row.predicted_down_bytes)
        if row.measured_peak_bytes is not None:
            assert row.predicted_peak_bytes == pytest.approx(row.measured_peak_bytes, rel=0.02)
    assert not (result.out / "model").exists()
    assert result.adapter.weights[PROMPT].shape == (5, 16)
    assert result.adapter.weights["prefix_embeddings.3"].shape == (5, 2 * 16)
    for kind, name in (("prompt", "prompt_embeddings"), ("prefix", "prompt_embeddings"), ("ia3", "ia3_l")):
        loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny["model"]), result.out / kind)
        assert any(name in key for key in loaded.state_dict()) or kind != "ia3"
        loaded(input_ids=torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 3))
    again = checkpoint.load(result.out)
    assert_same_tensors(again.state.adapter.tensors(), result.adapter.tensors())


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(tiny, tmp_path):
    config = changed(tiny, tmp_path)
    scene, progress, runtime = opened(config)
    model = AutoModel.from_pretrained(tiny["model"])
    own = initial_weights(dissect(model), scene.menu, scene.config.seed)
    start = progress.state.adapter
    progress.state = type(progress.state)(
        adapter=type(start)(factors=start.factors, head=start.head, weights=own)
    )
    try:
        play_round(scene, progress, runtime, 1)
        checkpoint.save(tmp_path, progress)
        again = checkpoint.load(tmp_path)
        assert_same_tensors(again.state.adapter.tensors(), progress.state.adapter.tensors())
        assert list(again.state.adapter.weights) == list(progress.state.adapter.weights)
        play_round(scene, progress, runtime, 2)
        play_round(scene, again, runtime, 2)
    finally:
        runtime.close()
    assert_same_tensors(again.state.adapter.tensors(), progress.state.adapter.tensors())
    assert isinstance(scene.menu[-1].adapter, Lora) or np.any(scene.menu[-1].trained)
