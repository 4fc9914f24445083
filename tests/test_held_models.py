"""What each device class can hold by itself after a run, beside transformers' answer for what is exported."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

import fedray
from fedray.assignment import Assignment, lora_on_top, weights_on_top
from fedray.config import load_config
from fedray.engine import CACHE_DIR, play_round
from fedray.held_models import held_models, of_class, size_of, words_of
from fedray.scene import set_scene
from fedray.width import Width
from tiny_run import merged, opened, records, save_fleet


def whole(rank=2, **changes):
    lora = lora_on_top(4, 4, rank, targets=("query",))
    return replace(Assignment(blocks=(0, 1, 2, 3), adapter=lora), **changes)


def of_blocks(*blocks, rank=2):
    lora = lora_on_top(len(blocks), len(blocks), rank, targets=("query",))
    return Assignment(blocks=blocks, adapter=lora)


def narrow(share):
    full = weights_on_top(4, 4, part="full")
    return Assignment(blocks=(0, 1, 2, 3), adapter=full, width=Width(share=share))


# Which model stands for a class.


def test_a_class_has_the_largest_model_that_half_of_its_clients_hold():
    two, three = of_blocks(0, 1), of_blocks(0, 1, 2)
    assert of_class([whole(), three, two, None]) == three
    assert of_class([whole(), None]) == whole()
    assert of_class([whole(), None, None]) is None
    assert of_class([None]) is None


def test_of_unlike_models_of_a_size_that_which_most_hold_stands_for_the_class():
    skips, others = of_blocks(0, 2, 3), of_blocks(1, 2, 3)
    assert of_class([others, skips, skips, None]) == skips
    # What is trained of it makes no other model: two against one.
    assert of_class([others, of_blocks(0, 2, 3, rank=4), skips]).blocks == (0, 2, 3)
    # Where as many hold each, the first by its blocks.
    assert of_class([others, skips]) == of_class([skips, others]) == skips


def test_blocks_times_width_come_before_zeros_and_these_before_bits():
    ordered = [
        of_blocks(0, 1),
        of_blocks(0, 1, 2),
        narrow(0.9),
        whole(sparsity=0.5),
        whole(weight_bits=4),
        whole(weight_bits=8),
        whole(),
    ]
    assert sorted(reversed(ordered), key=size_of) == ordered


def test_a_model_is_named_by_what_it_lacks():
    named = [words_of(one, 4) for one in (whole(), of_blocks(0, 1), of_blocks(0, 2), whole(weight_bits=8))]
    assert named == ["whole", "2 of 4 blocks", "2 of 4 blocks (0, 2)", "8 bits"]


KINDS = [None, of_blocks(0, 1), of_blocks(0, 2), narrow(0.5), whole(weight_bits=4), whole()]


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9), st.randoms())
def test_at_least_half_hold_as_much_as_their_class_and_their_order_does_not_matter(own, random):
    found = of_class(own)
    if found is None:
        assert 2 * sum(one is not None for one in own) < len(own)
    else:
        assert 2 * sum(one is not None and size_of(one) >= size_of(found) for one in own) >= len(own)
    shuffled = list(own)
    random.shuffle(shuffled)
    assert of_class(shuffled) == found


# In runs.


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Watches hold nothing, phones the leading blocks up to the second exit, tablets and laptops all."""
    folder = tmp_path_factory.mktemp("held")
    changes = {
        "menu": {"ranks": [4], "depths": ["all"], "exits": [1, 2]},
        "policy": "depthfl",
        "fleet": save_fleet(folder / "fleet.csv", [60, 170, 600, 600] * 2),
        "rounds": {"num_rounds": 2, "clients_per_round": 8, "eval_rounds": 2},
        "audit": {"distinct": False},
    }
    return fedray.run(merged(tiny, changes), out=folder / "run")


def rows_and_labels(result):
    scene = set_scene(load_config(result.out / "config.yaml"), CACHE_DIR)
    rows = scene.partitions.test
    return scene.encoded.batch(rows, 16), scene.encoded.numbers["label"][rows]


def test_a_classs_accuracy_is_that_of_the_folder_that_its_client_exports(finished, tmp_path):
    phone = next(one for one in finished.classes if one.device_class == "phone")
    assert phone.model == "2 of 4 blocks"
    client = next(r.client_id for r in finished.clients if r.device_class == "phone")
    folder = fedray.export(finished.out, client=client, out=tmp_path / "model").folder
    batch, labels = rows_and_labels(finished)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    head = safetensors.torch.load_file(folder / "head.safetensors")
    with torch.no_grad():
        states = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1).float()
    logits = (states * real).sum(1) / real.sum(1) @ head["weight"].T + head["bias"]
    assert phone.accuracy == pytest.approx(float(np.mean(logits.argmax(1).numpy() == labels)))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
    assert phone.loss == pytest.approx(float(loss), rel=1e-4)


def test_who_holds_the_whole_model_has_the_runs_accuracy_and_who_holds_nothing_has_none(finished):
    by_name = {one.device_class: one for one in finished.classes}
    last = finished.rounds[-1]
    assert list(by_name) == ["laptop", "phone", "tablet", "watch"]
    for name in ("tablet", "laptop"):
        assert (by_name[name].accuracy, by_name[name].loss) == (last.accuracy, last.loss)
    watch = by_name["watch"]
    assert (watch.num_clients, watch.num_holding, watch.assignment, watch.model) == (2, 0, "", "")
    assert (watch.accuracy, watch.loss) == (None, None)
    page = finished.report.read_text()
    assert "What each class can run by itself" in page
    assert pq.read_table(finished.out / "classes.parquet").num_rows == 4


def test_a_resumed_run_leaves_the_same_classes(finished, tmp_path):
    # As if killed after its last round.
    again = shutil.copytree(finished.out, tmp_path / "run")
    (again / "classes.parquet").unlink()
    assert fedray.resume(again).classes == finished.classes
    assert records(again, "classes") == records(finished.out, "classes")


def held(config):
    """What the classes hold after a run's rounds, and the last of these, without what it leaves on disk."""
    scene, progress, runtime = opened(config)
    try:
        record = play_round(scene, progress, runtime, 1)
        return held_models(scene, progress, runtime), record
    finally:
        runtime.close()


ONE_ROUND = {"rounds": {"num_rounds": 1, "clients_per_round": 2}, "audit": {"distinct": False}}


def test_rounded_models_are_evaluated_as_they_are(tiny, tmp_path):
    menu = {"ranks": [4], "depths": ["all"], "weight_bits": [4]}
    fleet = save_fleet(tmp_path / "fleet.csv", [600] * 8)
    classes, last = held(merged(tiny, {**ONE_ROUND, "menu": menu, "fleet": fleet}))
    assert {one.model for one in classes} == {"4 bits"}
    (loss,) = {one.loss for one in classes}
    # Nearly the whole model's, and not the same.
    assert last.loss != loss == pytest.approx(last.loss, rel=0.2)


def test_narrow_models_have_the_parts_of_what_was_trained(tiny, tmp_path):
    axes = {"widths": [0.5], "width_axes": ["ffn"]}
    menu = {"tunings": ["full"], "ranks": [], "depths": ["all"], **axes}
    fleet = save_fleet(tmp_path / "fleet.csv", [600] * 8)
    changes = {**ONE_ROUND, "menu": menu, "policy": "heterofl", "fleet": fleet}
    result = fedray.run(merged(tiny, changes), out=tmp_path / "run")
    assert {one.model for one in result.classes} == {"0.5 of ffn"}
    (loss,) = {one.loss for one in result.classes}
    assert result.rounds[-1].loss != loss == pytest.approx(result.rounds[-1].loss, rel=0.2)


def test_under_cuts_alone_nobody_holds_a_model(tiny):
    cuts = {"menu": {"ranks": [2], "depths": ["all"], "cuts": [1], "whole": False}}
    classes, _ = held(merged(tiny, {**cuts, **ONE_ROUND}))
    assert {(one.num_holding, one.model, one.accuracy) for one in classes} == {(0, "", None)}
