"""What a configuration stands for, before a weight is read."""

import numpy as np
import pytest

from fedray.errors import ConfigError, DataError, ModelError
from fedray.training.optimizer import LocalOptimizer
from tiny_run import begun, merged, played, save_fleet

NATURAL = {"name": "natural_id", "column": "author"}


def test_a_client_s_longest_row_says_what_its_rows_are_padded_to(tiny):
    scene, _ = begun(tiny)
    for client, own in enumerate(scene.partitions.train):
        longest = scene.encoded.lengths[own].max()
        assert scene.tokens[client] == min(-(-longest // 8) * 8, 16)
    cohort = scene.cohort(3, np.array([5, 2]))
    assert cohort.num_rows.tolist() == [len(scene.partitions.train[5]), len(scene.partitions.train[2])]
    assert cohort.device.memory_bytes.tolist() == [140 * 1024, 180 * 1024]
    assert cohort.seed != scene.cohort(4, np.array([5, 2])).seed


@pytest.mark.parametrize(
    ("changes", "name", "weighs_rows"),
    [
        ({}, "factor_mean", True),
        ({"policy": "hetlora"}, "hetlora", False),
        ({"policy": "hetlora", "aggregation": "flexlora"}, "flexlora", True),
        ({"aggregation": {"name": "hetlora", "weights": "rows"}}, "hetlora", True),
    ],
)
def test_the_policy_chooses_the_rule_unless_the_configuration_does(tiny, changes, name, weighs_rows):
    scene, _ = begun(merged(tiny, changes))
    assert (scene.rule.name, scene.weighs_rows) == (name, weighs_rows)


def test_larger_devices_hold_more_rows_if_asked(tiny, tmp_path):
    ranks = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    fleet = save_fleet(tmp_path / "fleet.csv", data_size_rank=ranks)
    scene, _ = begun(merged(tiny, {"fleet": {"name": fleet, "size_follows_memory": True}}))
    sizes = scene.num_rows[np.argsort(ranks)]
    assert sizes.tolist() == sorted(sizes.tolist())
    assert sizes[0] < sizes[-1]


def test_what_is_trained_how_reaches_the_optimizer(tiny):
    scene, _ = begun(merged(tiny, {"training": {"optim": "sgd", "learning_rate": 0.5, "momentum": 0.9}}))
    assert scene.optimizer == LocalOptimizer(optim="sgd", learning_rate=0.5, momentum=0.9)
    assert {entry.batch_size for entry in scene.menu} == {4}


def test_the_same_seed_gives_the_same_scene_and_another_does_not(tiny):
    one, same, other = (begun(merged(tiny, {"seed": seed}))[0] for seed in (1, 1, 2))
    rows = [np.concatenate(scene.partitions.train) for scene in (one, same, other)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_who_is_online_follows_the_fleets_declaration_round_by_round(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", availability=[0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    scene, _ = begun(merged(tiny, {"fleet": fleet}))
    rounds = np.array([scene.view(number, ()).online(range(8)) for number in range(1, 41)])
    assert not rounds[:, 0].any()
    assert rounds[:, 1].all()
    # 240 draws of one half: 16 either way is two standard deviations.
    assert rounds[:, 2:].sum() == pytest.approx(120, abs=32)
    view = scene.view(7, ())
    assert view.online([5, 3]).tolist() == [rounds[6, 5], rounds[6, 3]]


def test_a_policy_that_asks_who_is_online_loses_nobody(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", availability=[0.6] * 8)
    policy = tmp_path / "asks_first.py"
    policy.write_text(
        "class AsksFirst:\n"
        "    def select(self, view, state): return view.sample(online=True)\n"
        "    def assign(self, cohort, offers): return offers.best(offers.sum_of_ranks)\n"
    )
    config = merged(tiny, {"fleet": fleet, "dropouts": True})
    blind, asking = played(config), played(merged(config, {"policy": str(policy)}))
    assert sum(record.num_dropped for record in blind.rounds) > 0
    assert [record.num_dropped for record in asking.rounds] == [0, 0, 0]
    assert all(record.num_ok >= 1 for record in asking.rounds)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"menu": {"target_modules": ["q_proj"]}}, ModelError, "q_proj"),
        ({"menu": {"depths": [9]}}, ConfigError, "1 to 4, found 9"),
        ({"aggregation": "fedavg"}, ConfigError, "No aggregation is called 'fedavg'"),
        ({"data": {"partitioner": NATURAL, "num_clients": None}}, DataError, "needs the column 'author'"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(tiny, changes, error, words):
    config = merged(tiny, changes)
    if config["data"]["num_clients"] is None:
        del config["data"]["num_clients"]
    with pytest.raises(error, match=words):
        begun(config)
