"""Membership tried by a run on itself: in records, report and comparison, and refused where it cannot be."""

import json
from dataclasses import replace

import numpy as np
import pytest

import fedray
from fedray.assignment import Assignment, lora_on_top
from fedray.attacks.membership import by_loss
from fedray.attacks.shadows import by_ratio, trained_shadows
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.scene import furnish, set_scene
from fedray.seeds import derive_seed
from fedray.simulation.devices import simulated_scene
from fedray.training.job import lone_job
from fedray.training.shapes import initial_adapter
from fedray.training.workshop import open_workshop
from report_page import Page, measures
from tiny_run import merged, played, records, save_fleet

ATTACKED = {
    "attacks": {"membership": True, "rows": 1000},
    "rounds": {"num_rounds": 2, "clients_per_round": 8, "eval_rounds": 2},
}


@pytest.fixture(scope="module")
def left(tiny, tmp_path_factory):
    """A run that tries membership after its second round, on disk."""
    config = merged(tiny, ATTACKED)
    return config, fedray.run(config, out=tmp_path_factory.mktemp("attacked") / "run")


def test_it_is_the_loss_attack_on_rows_of_clients_that_trained(left):
    config, result = left
    first, last = records(result.out, "rounds")
    assert (first["membership_auc"], first["membership_found"]) == (None, None)
    scene = set_scene(load_config(config), None)
    counted = {record.client_id for record in result.clients if record.outcome == "ok"}
    members = np.concatenate([scene.partitions.train[client] for client in sorted(counted)])
    owned = [own for own in scene.partitions.test_of if len(own)]
    others = np.concatenate(owned) if owned else scene.partitions.test
    blueprint, stock, _ = furnish(scene, "cpu")
    workshop = open_workshop(blueprint, stock)
    # All held-out rows were asked about, and as many of the others as there are of these.
    told = by_loss(workshop, result.adapter, members, others)
    assert abs(last["membership_auc"] - told.auc) < 0.1
    assert 0 <= last["membership_found"] <= 1


def test_it_changes_nothing_else_and_is_the_same_every_time(tiny, left):
    config, result = left
    again = played(config)
    assert again.rounds[-1].membership_auc == result.rounds[-1].membership_auc
    without = played(merged(tiny, {"rounds": ATTACKED["rounds"]}))
    assert without.rounds[-1].membership_auc is None
    assert without.rounds[-1].loss == result.rounds[-1].loss


def test_report_and_comparison_tell_it(left):
    _, result = left
    text = Page(fedray.write_report(result.out).read_text()).text
    assert f"the area under the curve is {result.rounds[-1].membership_auc:.3f} (0.5 is guessing)" in text
    told = measures(result.out, 8)
    assert told["membership AUC"] == pytest.approx(result.rounds[-1].membership_auc)
    assert told["members found"] == pytest.approx(result.rounds[-1].membership_found)
    assert "membership AUC by ratio" not in told
    assert "attacks.shadows: 8 asks for it" in text


@pytest.fixture(scope="module")
def overfitted(tiny, tmp_path_factory):
    """A run on labels that follow from nothing, whose rows can only be learnt by heart, with shadows."""
    folder = tmp_path_factory.mktemp("overfitted")
    random, rows = np.random.default_rng(1), folder / "rows.jsonl"
    lines = [
        {"text": " ".join(f"w{word}" for word in random.integers(0, 44, 8)), "label": f"l{label}"}
        for label in random.integers(0, 4, 64)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = merged(
        tiny,
        {
            "data": {
                "source": str(rows),
                "num_clients": 2,
                "test_share": 0.5,
                "partitioner": {"name": "iid"},
            },
            "fleet": save_fleet(folder / "fleet.csv", [4000, 4000]),
            "menu": {"ranks": [8], "depths": ["all"]},
            "training": {"num_train_epochs": 20},
            "rounds": {"num_rounds": 2, "clients_per_round": 2, "eval_rounds": 2},
            "packs": {"clients_per_pack": 6},
            "attacks": {"membership": True, "shadows": 6, "shadow_epochs": 20},
        },
    )
    return config, fedray.run(config, out=folder / "run")


def test_shadows_tell_members_of_a_model_that_overfits_as_the_attack_itself_does(overfitted):
    config, result = overfitted
    last = result.rounds[-1]
    assert result.rounds[0].membership_ratio_auc is None
    assert last.membership_ratio_auc > 0.7
    scene = set_scene(load_config(config), None)
    blueprint, stock, _ = furnish(scene, "cpu")
    workshop = open_workshop(blueprint, stock)
    # All rows are asked about: 32 of the two clients, and 32 of nobody.
    members, others = (
        np.sort(np.concatenate([own for own in parts if len(own)]))
        for parts in (scene.partitions.train, [*scene.partitions.test_of, scene.partitions.test])
    )
    assert (len(members), len(others)) == (32, 32)
    given = Assignment(
        blocks=(0, 1, 2, 3),
        adapter=lora_on_top(4, 4, 8, targets=("query", "value")),
        batch_size=4,
        num_epochs=20,
    )
    start = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, scene.config.seed)
    seed = derive_seed(scene.config.seed, "shadows", 2)
    like = replace(lone_job(given, start, num_rows=32, tokens=16), seed=seed)
    shadows = trained_shadows(workshop, like, np.concatenate([members, others]), 6, seed)
    told = by_ratio(workshop, result.adapter, shadows, members, others)
    assert (last.membership_ratio_auc, last.membership_ratio_found) == (told.auc, told.true_positive_rate)
    # Before any training it guesses; of 32 and 32 rows one deviation of that is 0.07.
    assert abs(by_ratio(workshop, start, shadows, members, others).auc - 0.5) < 0.15


def test_report_and_comparison_tell_what_shadows_do(overfitted):
    _, result = overfitted
    last = result.rounds[-1]
    text = Page(fedray.write_report(result.out).read_text()).text
    assert "Held to 6 shadow models, trained on halves of the rows that are asked about, it is " in text
    assert f"is {last.membership_ratio_auc:.3f} by likelihood ratio, and " in text
    assert "asks for it" not in text
    told = measures(result.out, 2)
    assert told["membership AUC by ratio"] == pytest.approx(last.membership_ratio_auc)
    assert told["members found by ratio"] == pytest.approx(last.membership_ratio_found)


def test_shadows_have_the_shape_of_what_a_menu_of_unlike_clients_trains(tiny, tmp_path):
    asked = {
        "attacks": {"membership": True, "rows": 8, "shadows": 4, "shadow_epochs": 1},
        "rounds": {"num_rounds": 1},
    }
    fleet = save_fleet(tmp_path / "fleet.csv", [4000] * 8)
    # Heads at exits and cuts lie beside the model's own; heads alone leave no factors.
    mixed = {"exits": [2], "cuts": [1], "local_loss": [True], "ranks": [2, 4]}
    heads = {"ranks": [], "head_only": True}
    for menu in (mixed, heads):
        config = {
            **merged(tiny, {**asked, "fleet": fleet}),
            "menu": {**menu, "per_device_train_batch_size": [4]},
        }
        [record] = played(config).rounds
        assert record.num_ok > 0
        assert record.membership_ratio_auc is not None


def test_a_simulation_has_no_model_to_attack(tiny):
    with pytest.raises(ConfigError, match=r"attacks\.membership looks into what was learnt"):
        simulated_scene(load_config(merged(tiny, ATTACKED)), None)
