"""A simulation beside the run it stands for: the same decisions, the same clock, and what it cannot know."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fedray
from fedray.assignment import Assignment
from fedray.cli import app
from fedray.config import load_config
from fedray.errors import ConfigError, SimulationError
from fedray.simulation.devices import simulated_scene
from tiny_run import merged, records, save_fleet

# What training alone makes: losses, audits, the wall, how often work was done.
TRAINED = ("loss", "measured_peak_bytes", "wall_seconds", "attempts", "statistics", "accuracy", "drift",
           "lost_share", "disagreement")  # fmt: skip


def assert_same_system(simulated, run):
    for name in ("clients", "rounds"):
        assert records(simulated.out, name, TRAINED) == records(run.out, name, TRAINED)


SETTINGS = {
    "whole models": {},
    "a goal, dropouts": {
        "pace": {"goal": 3},
        "dropouts": True,
        "rounds": {"clients_per_round": 8},
        "selection": {"name": "fedcs", "options": {"deadline_seconds": 30}},
    },
    "a deadline": {"pace": {"deadline_seconds": 1.0}, "selection": "tifl"},
    "cuts": {
        "menu": {"ranks": [2], "cuts": [1], "tails": [0, 1], "whole": False},
        "rounds": {"num_rounds": 2},
        "policy": "deepest_cut",
        "privacy": {"cut_clip_norm": 4.0, "cut_noise_multiplier": 20.0},
    },
    "devices other than they declare": {
        "actual": {"compute_jitter": 0.4, "link_jitter": 0.3, "memory_misreport": 0.3},
        "rounds": {"clients_per_round": 8},
        "availability": "diurnal",
    },
    "partial work by a deadline": {
        "pace": {"deadline_seconds": 1.4, "late": "partial"},
        "training": {"max_steps": 30},
        "actual": {"compute_drift": 500.0},
    },
    "a server whose own link is short": {
        "server_link": {"up_bps": 1.2e5, "down_bps": 5e5},
        "actual": {"link_jitter": 0.3},
    },
    "crashes": {
        "actual": {"crashes_per_hour": 900.0},
        "rounds": {"clients_per_round": 8},
    },
    "batteries that run empty": {
        "battery": {"start_share": 0.5, "reserve_share": 0.0, "charging": "never"},
        "actual": {"compute_jitter": 0.5},
        "rounds": {"clients_per_round": 8},
        "provision": "preinstalled",
    },
    "rounds that overlap until a goal": {
        "pace": {"goal": 2, "late": "join", "staleness": "polynomial", "max_staleness": 1},
        "aggregation": "factor_mean",
        "rounds": {"num_rounds": 5, "clients_per_round": 5},
        "availability": "diurnal",
        "actual": {"compute_jitter": 0.4},
    },
    "cuts in rounds that overlap until a goal, dropouts": {
        "pace": {"goal": 2, "late": "join"},
        "menu": {"ranks": [2], "cuts": [1], "tails": [0, 1], "whole": False},
        "rounds": {"num_rounds": 5, "clients_per_round": 5},
        "server": {"flops_per_s": 5e6, "min_riders": 2, "window_seconds": 0.5},
        "policy": "deepest_cut",
        "dropouts": True,
        "actual": {"compute_jitter": 0.4},
    },
    "batteries that run empty under cuts in rounds that overlap until a goal": {
        "pace": {"goal": 2, "late": "join"},
        "menu": {"ranks": [2], "cuts": [1], "whole": False},
        "rounds": {"num_rounds": 5, "clients_per_round": 5},
        "server": {"flops_per_s": 5e6},
        "policy": "deepest_cut",
        "battery": {"start_share": 0.5, "reserve_share": 0.0, "charging": "never"},
        "actual": {"compute_jitter": 0.8},
        "provision": "preinstalled",
    },
    "central privacy, each client drawn for itself": {
        "privacy": {"where": "central", "clip_norm": 1.0},
        "aggregation": {"name": "factor_mean", "options": {"mode": "zero_pad"}, "weights": "uniform"},
        "selection": "poisson",
        "rounds": {"num_rounds": 4, "clients_per_round": 1},
    },
    "codecs and few bits": {
        "menu": {"weight_bits": ["all", 8], "up_codecs": ["int8"]},
        "policy": "everybody_smallest",
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_simulation_has_a_runs_numbers_wherever_nothing_is_learnt(tiny, tmp_path, setting):
    availability = [0.6, 0.9, 0.7, 1.0, 0.5, 0.8, 0.9, 0.6]
    batteries = {"compute_watts": [5.0] * 8, "battery_joules": [6.0] * 8}
    columns = batteries if "batteries" in setting else {}
    fleet = save_fleet(tmp_path / "fleet.csv", availability=availability, **columns)
    config = merged(tiny, {**SETTINGS[setting], "fleet": fleet})
    run = fedray.run(config, out=tmp_path / "run")
    simulated = fedray.simulate(config, out=tmp_path / "simulated")
    outcomes = {record.outcome for record in run.clients}
    assert ("late" in outcomes) is ("goal" in setting or "deadline" in setting)
    assert ("dropped" in outcomes) is any(w in setting for w in ("dropouts", "crashes", "empty"))
    assert any(record.cut for record in run.clients) is ("cuts" in setting)
    assert_same_system(simulated, run)


def test_a_replay_has_the_runs_losses_even_for_a_selection_that_asks_for_them(tiny, tmp_path):
    config = merged(tiny, {"selection": "oort", "rounds": {"num_rounds": 4, "clients_per_round": 4}})
    run = fedray.run(config, out=tmp_path / "run")
    replayed = fedray.simulate(config, out=tmp_path / "replayed", replay=tmp_path / "run")
    left = ("measured_peak_bytes", "wall_seconds", "attempts")
    for name in ("clients", "rounds", "evaluations"):
        assert records(replayed.out, name, left) == records(run.out, name, left)
    assert "accuracy" in fedray.write_report(replayed.out).read_text()


def test_a_replay_that_decides_otherwise_is_refused_and_leaves_nothing(tiny, tmp_path):
    fedray.run(merged(tiny, {"policy": "everybody_smallest"}), out=tmp_path / "run")
    with pytest.raises(SimulationError, match=r"parts from it in round 1: client \d+ is given \(rank 4"):
        fedray.simulate(tiny, out=tmp_path / "other", replay=tmp_path / "run")
    longer = merged(tiny, {"policy": "everybody_smallest", "rounds": {"num_rounds": 5}})
    with pytest.raises(SimulationError, match=r"Round 4 is not in .*, which has 3"):
        fedray.simulate(longer, out=tmp_path / "other", replay=tmp_path / "run")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("selection", ["uniform", "power_of_choice", "tifl", "oort"])
def test_any_selection_plays_on_many_devices(tiny, tmp_path, selection):
    config = merged(
        tiny,
        {
            "fleet": {"name": "edge", "num_clients": 3000, "memory_share": 0.001},
            "rounds": {"clients_per_round": 200},
            "selection": selection,
            "dropouts": True,
        },
    )
    found = fedray.simulate(config, out=tmp_path / "many")
    assert len(found.rounds) == 3
    assert max(record.client_id for record in found.clients) > 8
    assert all(record.accuracy is None for record in found.rounds)
    assert all(record.loss is None for record in found.clients)
    again = fedray.simulate(config, out=tmp_path / "again")
    assert records(found.out, "clients") == records(again.out, "clients")


def test_each_device_holds_what_one_of_the_datas_clients_holds(tiny):
    small = simulated_scene(load_config(tiny), None)
    many = merged(tiny, {"fleet": {"name": "edge", "num_clients": 2000}})
    scene = simulated_scene(load_config(many), None)
    pairs = {*zip(small.num_rows.tolist(), small.num_tokens.tolist(), strict=True)}
    assert scene.num_clients == 2000
    assert {*zip(scene.num_rows.tolist(), scene.num_tokens.tolist(), strict=True)} == pairs
    half = merged(tiny, {"fleet": {"name": "edge", "num_clients": 1000}})
    assert np.array_equal(simulated_scene(load_config(half), None).num_rows, scene.num_rows[:1000])


def test_with_size_follows_memory_larger_devices_hold_more(tiny):
    changes = {"fleet": {"name": "edge", "num_clients": 500, "size_follows_memory": True}}
    scene = simulated_scene(load_config(merged(tiny, changes)), None)
    order = np.argsort(scene.fleet.data_size_rank(np.arange(500)), kind="stable")
    assert (np.diff(scene.num_rows[order]) >= 0).all()


class Curious:
    """Notes what it is shown of clients nobody trained."""

    observables = frozenset({"grad_norm", "squared_loss"})
    seen = []  # noqa: RUF012 - the test reads it

    def assign(self, cohort, offers, state):
        return offers.best(offers.sum_of_ranks), state

    def observe(self, rows, state):
        Curious.seen += rows
        return state


def test_a_policy_is_shown_alike_losses_and_the_record_none(tiny, tmp_path):
    Curious.seen.clear()
    found = fedray.simulate(tiny, out=tmp_path / "s", policy=Curious())
    fine = [row for row in Curious.seen if row["outcome"] == "ok"]
    assert len(fine) == len(found.clients) > 10
    assert {row["loss"] for row in fine} == {1.0}
    assert {row["statistics"]["squared_loss"].item() for row in fine} == {1.0}
    for row in fine:
        trained = Assignment.from_json(row["assignment"]).trained
        assert (row["statistics"]["grad_norm"] == 1.0).tolist() == list(trained)
    assert {record.statistics for record in found.clients} == {"{}"}


def test_what_depends_on_training_is_refused(tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"aggregation 'flora' sends clients a change of the frozen weights"
    ):
        fedray.simulate(merged(tiny, {"aggregation": "flora"}), out=tmp_path / "s")
    cuts = merged(tiny, {"menu": {"cuts": [1]}, "server": {"aggregation_interval": 2}})
    with pytest.raises(ConfigError, match=r"server\.aggregation_interval: 2 .* set it to 1"):
        fedray.simulate(cuts, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_run_has_no_devices_without_rows(tiny, tmp_path):
    many = merged(tiny, {"fleet": {"name": "edge", "num_clients": 100}})
    with pytest.raises(ConfigError, match=r"fleet\.num_clients: 100 is for fedray simulate"):
        fedray.run(many, out=tmp_path / "s")
    few = merged(tiny, {"fleet": {"name": "edge", "num_clients": 4}})
    with pytest.raises(ConfigError, match=r"asks for 5 clients, and fleet\.num_clients is 4"):
        fedray.simulate(few, out=tmp_path / "s")


def test_the_command_prints_a_line_a_round_and_names_the_report(tmp_path):
    said = CliRunner().invoke(app, ["simulate", "--help"])
    assert "examples/million.yaml" in said.output
    absent = CliRunner().invoke(
        app, ["simulate", "examples/million.yaml", "--out", str(tmp_path), "--replay", "x"]
    )
    assert absent.exit_code != 0
