"""Updates looked into by a run itself: on what its server has, in records, report and comparison."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import fedray
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.overheard import Ear
from fedray.scene import set_scene
from fedray.simulation.devices import simulated_scene
from fedray.training.job import lone_job
from fedray.training.train import update_of
from image_run import image_configuration
from report_page import Page, measures
from tiny_run import assert_same_adapter, begun, merged, played, save_fleet, save_model

QUIET = {"audit": {"share": 0.0, "distinct": False}}
# One step of plain SGD on a row or two: what an update gives away is nearly all of it.
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": None, "max_steps": 1}
ATTACKED = {
    **QUIET,
    "attacks": {"updates": True, "labels": True, "clients": 8},
    "training": SGD,
    "menu": {"ranks": [16], "depths": ["all"], "per_device_train_batch_size": [1]},
    "rounds": {"num_rounds": 2, "clients_per_round": 8, "eval_rounds": 1},
}


def uneven(folder, loader=AutoModel):
    """The same model with larger weights: as drawn, all tokens have nearly one gradient."""
    torch.manual_seed(1)
    model = loader.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def attacked(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    fleet = save_fleet(folder / "fleet.csv", [4096] * 8)
    return merged(tiny, {**ATTACKED, "fleet": fleet, "model": uneven(save_model(folder / "bert", "bert"))})


@pytest.fixture(scope="module")
def left(attacked, tmp_path_factory):
    """The run on disk."""
    return fedray.run(attacked, out=tmp_path_factory.mktemp("attacked") / "run")


def test_of_single_rows_words_and_labels_are_found_and_of_masses_of_rows_few_words(left, attacked):
    first, second = left.rounds
    # At most 16 tokens a row and as many ranks. In round 1 B is zero, and has a gradient itself.
    assert min(first.words_found, second.words_found) > 0.7
    assert first.labels_found == second.labels_found == 1.0
    assert max(first.words_floor, first.labels_floor) < 0.6
    many = {"menu": {"per_device_train_batch_size": [64]}, "rounds": {"num_rounds": 1}}
    # Of 48 words some twenty are said at each place.
    assert played(merged(attacked, many)).rounds[0].words_found < first.words_found - 0.2


def test_codecs_and_local_noise_come_before_what_the_server_looks_into(attacked):
    once = {"rounds": {"num_rounds": 1}}
    hidden = {"privacy": {"where": "local", "clip_norm": 1.0, "noise_multiplier": 1.0}}
    noisy = played(merged(attacked, {**once, **hidden})).rounds[0]
    assert noisy.words_found < 0.3
    assert noisy.labels_found < 0.8
    assert played(merged(attacked, {**once, "menu": {"up_codecs": ["top1"]}})).rounds[0].words_found < 0.9


def test_it_changes_nothing_else_whoever_is_packed_with_whom(attacked):
    without = played({name: section for name, section in attacked.items() if name != "attacks"})
    assert without.rounds[-1].words_found is None
    few = merged(attacked, {"attacks": {"clients": 3}})
    one, other = played(few), played(merged(few, {"packs": {"clients_per_pack": 1}}))
    assert_same_adapter(one.state.adapter, without.state.adapter)
    for name in ("words_found", "words_floor", "labels_found", "labels_floor"):
        assert getattr(one.rounds[-1], name) == getattr(other.rounds[-1], name)


def test_who_is_looked_into_is_the_same_whoever_comes_first_and_another_in_another_round(attacked):
    scene, progress = begun(merged(attacked, {"attacks": {"clients": 3}}))
    job = lone_job(scene.menu[0], progress.state.adapter, num_rows=4, tokens=16)
    kept = {}
    for number, order in ((1, range(8)), (1, reversed(range(8))), (2, range(8))):
        ear = Ear(scene, number)
        for client in order:
            one = replace(job, client_id=client)
            ear.update(one, update_of(one, progress.state.adapter, 1.0, 0.0))
        kept.setdefault(number, []).append(tuple(ear.heard))
    assert kept[1][0] == kept[1][1] != kept[2][0]
    assert len(kept[2][0]) == 3


def test_under_tails_labels_are_told_by_what_goes_up_and_first_blocks_by_updates(attacked):
    cut = {
        "menu": {"cuts": [1], "tails": [1], "whole": False, "per_device_train_batch_size": [8]},
        "training": {"max_steps": 3},
        "rounds": {"num_rounds": 1},
    }
    record = played(merged(attacked, cut)).rounds[0]
    # Four classes, as in tests/attacks/test_labels.py.
    assert record.labels_found > 0.7
    assert record.labels_floor < 0.5
    assert record.words_found is not None


def test_a_causal_lms_words_are_found_in_overlapping_rounds_too(attacked, tmp_path):
    lm = {
        "model": uneven(save_model(tmp_path / "llama", "llama"), AutoModelForCausalLM),
        "task": "causal_lm",
        "attacks": {"labels": False},
        "training": {"head_learning_rate": None},
        "pace": {"late": "join", "goal": 4},
        "rounds": {"num_rounds": 1},
    }
    assert played(merged(attacked, lm)).rounds[0].words_found > 0.9


def test_report_and_comparison_tell_it(left):
    text = Page(fedray.write_report(left.out).read_text()).text
    last = left.rounds[-1]
    assert f"Inverting updates finds {100 * last.words_found:.0f} % of the words" in text
    assert "100 % of labels are told" in text
    told = measures(left.out, 8)
    assert told["words found"] == pytest.approx(last.words_found)
    assert told["labels found"] == pytest.approx(last.labels_found)


def test_images_are_searched_for_and_told_beside_the_mean_image(home, tmp_path):
    images = image_configuration(tmp_path)
    del images["menu"]["cuts"]
    searched = {
        **QUIET,
        "attacks": {"updates": True, "clients": 2, "search_steps": 20},
        "fleet": save_fleet(tmp_path / "rich.csv", [4096] * 6),
        "menu": {"per_device_train_batch_size": [1]},
        "training": {**SGD, "num_train_epochs": 1},
        "rounds": {"num_rounds": 2, "eval_rounds": 2},
    }
    config = merged(images, searched)
    del config["training"]["num_train_epochs"]
    record = played(config).rounds[-1]
    assert record.words_found is None
    assert 0 < record.images_floor < 40
    assert 0 < record.images_psnr < 200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"menu": {"depths": [1]}}, "none of the menu's 1 assignments trains these"),
        ({"attacks": {"search_steps": 7}}, "attacks.search_steps are of a search for images"),
    ],
)
def test_what_has_nothing_to_look_for_is_refused(attacked, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        set_scene(load_config(merged(attacked, changes)), None)


def test_a_causal_lm_has_no_labels_and_images_under_cuts_no_whole_model(attacked, tmp_path):
    lm = {
        "model": save_model(tmp_path / "llama", "llama"),
        "task": "causal_lm",
        "training": {"head_learning_rate": None},
    }
    with pytest.raises(ConfigError, match=r"attacks\.labels infers labels, and the task 'causal_lm' has no"):
        set_scene(load_config(merged(attacked, lm)), None)
    images = merged(image_configuration(tmp_path), {"attacks": {"updates": True}})
    with pytest.raises(ConfigError, match=r"under menu\.cuts a server trains a part of it"):
        set_scene(load_config(images), None)


def test_a_simulation_has_no_updates_to_look_into(attacked):
    with pytest.raises(ConfigError, match=r"attacks\.updates looks into what was learnt"):
        simulated_scene(load_config(attacked), None)
