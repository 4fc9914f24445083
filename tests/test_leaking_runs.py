"""What cuts give away as a run's option: measured once, seen by policies, told in records and pages."""

from dataclasses import replace

import pytest

import fedray
from fedray.attacks.inversion import Sent, token_recovery
from fedray.attacks.pictures import share_told
from fedray.attacks.searched import searched_recovery
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.leakage import leakage_of
from fedray.model.anatomy import dissect
from fedray.model.load import load_backbone
from fedray.scene import set_scene
from fedray.seeds import generator
from image_run import image_configuration
from report_page import Page, measures
from tiny_run import merged, records, save_model


def under_cuts(tiny, **leakage):
    changes = {
        "menu": {"ranks": [2], "depths": ["all"], "cuts": [1, 2, 3]},
        "leakage": {"measure": True, "rows": 64, **leakage},
    }
    return merged(tiny, changes)


def measured(config, folder=None):
    config = load_config(config)
    scene = set_scene(config, None)
    return leakage_of(config, scene.task, scene.encoded, folder)


def test_of_images_it_is_what_of_the_difference_from_the_mean_one_is_found_by_hand():
    assert share_told(20.0, 10.0) == pytest.approx(0.9)  # a tenth of the mean image's squared error is left
    assert share_told(10.0, 10.0) == share_told(3.0, 10.0) == 0
    assert share_told(float("inf"), 10.0) == 1


def test_a_run_measures_it_once_and_keeps_it(tiny, tmp_path):
    config = load_config(under_cuts(tiny))
    scene = set_scene(config, tmp_path)
    (kept,) = tmp_path.glob("leakage-*.json")
    assert scene.view(1, ()).leakage == scene.leakage
    assert set(scene.leakage) == {0, 1, 2, 3, 4}
    kept.write_text('{"0": 0.5}')
    assert leakage_of(config, scene.task, scene.encoded, tmp_path) == {0: 0.5}
    off = load_config({**under_cuts(tiny), "leakage": {"measure": False}})
    assert leakage_of(off, scene.task, scene.encoded, tmp_path) == {}
    other = replace(
        scene.encoded, lists={name: ids[::-1].copy() for name, ids in scene.encoded.lists.items()}
    )
    assert leakage_of(config, scene.task, other, tmp_path) != {0: 0.5}


def test_other_weights_in_the_same_folder_are_measured_anew(tiny, tmp_path):
    model = save_model(tmp_path / "model", "bert")
    config = {**under_cuts(tiny), "model": model}
    measured(config, tmp_path)
    backbone = load_backbone(model, "classification", "fp32")[0]
    next(backbone.parameters()).data.mul_(-3)
    backbone.save_pretrained(model)
    measured(config, tmp_path)
    assert len(list(tmp_path.glob("leakage-*.json"))) == 2


def test_a_search_is_the_attack_of_that_name_at_the_menus_cuts(tiny, tmp_path):
    config = load_config(under_cuts(tiny, attack="search", search_rows=4))
    scene = set_scene(config, tmp_path)
    anatomy = dissect(load_backbone(config.model.name, "classification", "fp32")[0])
    drawn = generator(config.seed, "leakage").permutation(len(scene.encoded.lengths))[:64]
    rows = anatomy, scene.encoded, drawn[:32], drawn[32:36]
    sent = Sent(seed=config.seed)
    assert scene.leakage == searched_recovery(*rows, sent, [1, 2, 3])
    decoded = token_recovery(*rows, sent)
    assert all(scene.leakage[cut] >= decoded[cut] for cut in (1, 2, 3))
    assert measured(under_cuts(tiny, attack="search", search_rows=4), tmp_path) == scene.leakage
    assert len(list(tmp_path.glob("leakage-*.json"))) == 1


def test_images_are_inverted_too_and_noise_on_hidden_states_hides_them(home):
    config = merged(image_configuration(home), {"leakage": {"measure": True, "rows": 200}})
    plain = measured(config)
    assert list(plain) == [0, 1, 2, 3, 4]
    assert plain[0] > 0.99
    noised = measured(merged(config, {"privacy": {"cut_clip_norm": 0.01, "cut_noise_multiplier": 10.0}}))
    assert max(noised.values()) < 0.2


def test_words_are_searched_for_and_images_are_not(home):
    config = merged(image_configuration(home), {"leakage": {"measure": True, "attack": "search"}})
    with pytest.raises(
        ConfigError, match=r"leakage\.attack: search tries words, and into this model go images"
    ):
        measured(config)


@pytest.fixture(scope="module")
def left(tiny, tmp_path_factory):
    """A run whose clients have cuts, or none, on disk."""
    config = merged(
        under_cuts(tiny), {"policy": {"name": "private_cut", "options": {"max_leakage": 1.0}}, "seed": 1}
    )
    return config, fedray.run(config, out=tmp_path_factory.mktemp("leaking") / "run")


def test_records_have_it_of_who_had_a_cut(left):
    config, result = left
    leakage = set_scene(load_config(config), None).leakage
    told = {(row["cut"], row["leakage"]) for row in records(result.out, "clients")}
    assert told == {(cut, None if cut is None else leakage[cut]) for cut, _ in told}
    assert any(cut is not None for cut, _ in told)
    assert {row.outcome for row in result.clients} == {"ok"}
    simulated = fedray.simulate(config, out=result.out.parent / "simulated")
    assert {(row.cut, row.leakage) for row in simulated.clients} == told


def test_report_and_comparison_tell_it(left):
    _, result = left
    shares = [row.leakage for row in result.clients if row.leakage is not None]
    page = Page(fedray.write_report(result.out).read_text())
    assert (
        f"finds {100 * sum(shares) / len(shares):.0f} % on average, over {len(shares)} client-rounds"
        in page.text
    )
    told = measures(result.out, 8)
    assert told["leaked at cuts"] == pytest.approx(sum(shares) / len(result.clients))
