"""Whole comparisons: the runs, what they leave, what goes on, and what is refused."""

import shutil
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
import pytest

import fedray
from fedray.cli import MISTAKE, main
from fedray.comparison.entrants import Entrant, Trial
from fedray.comparison.runs import Shown, played
from fedray.config.loading import config_to_yaml, load_config
from fedray.errors import ConfigError
from tiny_run import assert_same_run, merged

SMALL = {"rounds": {"num_rounds": 2, "clients_per_round": 3}, "data": {"per_client": True}}


@pytest.fixture(scope="module")
def small(tiny: dict[str, Any]) -> dict[str, Any]:
    return merged(tiny, SMALL)


@pytest.fixture(scope="module")
def done(small: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("comparison") / "out"
    return fedray.compare(small, out=out, policies=["hetlora"], seeds=2, target=0.2)


def test_every_policy_and_what_any_has_to_beat_run_with_every_seed(done):
    found = pq.read_table(done.out / "comparison.parquet")
    assert found.equals(done.table())
    rows = found.to_pylist()
    beside = {"drop_weak", "everybody_smallest", "local_only", "centralised"}
    assert {(r["policy"], r["seed"]) for r in rows} == {
        (policy, seed) for policy in {"hetlora", *beside} for seed in (0, 1)
    }
    assert {r["policy"] for r in rows if r["beside"]} == beside
    measured = {r["measure"] for r in rows}
    assert {"accuracy at equal", "cost to target", "waste", "participation", "accuracy of class"} <= measured
    assert {r["group"] for r in rows if r["measure"] == "accuracy of class"} >= {"watch", "laptop"}


def test_a_run_of_a_comparison_is_the_run_of_its_policy_and_seed(done, small, tmp_path):
    alone = fedray.run(small, out=tmp_path / "alone", overrides=["policy=hetlora", "seed=1"])
    assert_same_run(alone.out, done.out / "runs" / "hetlora" / "seed_1")


def test_the_page_and_the_table_name_everybody_and_stand_alone(done):
    page = done.report.read_text()
    text = done.to_text()
    for policy in ("hetlora", "drop_weak", "everybody_smallest", "local_only", "centralised"):
        assert policy in page
        assert policy in text
    assert "(beside)" in page
    # Nobody has measured a watt.
    assert "energy as declared" in text
    assert "by the watts that devices declare, nobody measured it" in page
    assert "Declared energy" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "data:image/svg+xml" in page


def test_a_comparison_that_was_broken_off_goes_on_to_the_same_numbers(done, small, tmp_path):
    out = shutil.copytree(done.out, tmp_path / "out")
    shutil.rmtree(out / "runs" / "everybody_smallest" / "seed_1")
    # As if killed after its last round, before what is left last.
    shutil.rmtree(out / "runs" / "drop_weak" / "seed_1" / "adapter")
    (out / "runs" / "centralised" / "seed_1" / "evaluations.parquet").unlink()
    (out / "comparison.parquet").unlink()
    again = fedray.compare(small, out=out, policies=["hetlora"], seeds=2, target=0.2)
    assert again.rows == done.rows
    assert (out / "comparison.parquet").exists()
    assert (out / "runs" / "drop_weak" / "seed_1" / "adapter").exists()


def test_a_run_with_a_page_is_over_when_that_is_drawn(small, tmp_path):
    config = load_config(merged(small, {"report": True}))
    trial = Trial(entrant=Entrant(name="drop_weak", options={}), setting={}, seed=0, tuned={})
    page = trial.place(tmp_path) / "report.html"
    times = []
    for _ in range(3):
        played(config, [trial], tmp_path, Shown(), 0, 1)
        times.append(page.stat().st_mtime_ns)
        if len(times) == 2:
            page.unlink()
    assert times[0] == times[1] < times[2]


def test_tuning_tries_as_much_for_everybody_and_chooses_on_validation_rows(small, tmp_path):
    config = merged(small, {"data": {"validation_share": 0.2}, "rounds": {"num_rounds": 1}})
    found = fedray.compare(
        config,
        out=tmp_path / "out",
        policies=["drop_weak", "everybody_smallest"],
        seeds=1,
        tune={"training.learning_rate": [0.0, 1e-2]},
    )
    assert [(t.policy, t.tuned, t.seed) for t in found.tried] == [
        (policy, f"training.learning_rate={rate}", 1)
        for policy in ("drop_weak", "everybody_smallest")
        for rate in (0.0, 0.01)
    ]
    assert all(t.virtual_seconds > 0 and t.moved_bytes > 0 for t in found.tried)
    for policy in ("drop_weak", "everybody_smallest"):
        trials = [t for t in found.tried if t.policy == policy]
        (kept,) = {row.tuned for row in found.rows if row.policy == policy}
        assert [t.tuned for t in trials if t.chosen] == [kept]
        assert max(trials, key=lambda t: t.validation_accuracy).validation_accuracy == next(
            t.validation_accuracy for t in trials if t.chosen
        )
    assert pq.read_table(found.out / "tuning.parquet").num_rows == 4


def test_another_configuration_in_the_same_folder_is_refused(done, small):
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        fedray.compare(
            small, out=done.out, policies=["hetlora"], seeds=1, overrides=["training.learning_rate=0.5"]
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policies": []}, "needs a policy at least"),
        ({"policies": ["hetlora", "hetlora"]}, "'hetlora' is given 2 times"),
        ({"policies": ["hetlora"], "seeds": 0}, "seeds is how many, 1 or more"),
        ({"policies": ["hetlora"], "seeds": [1, 1]}, "found \\[1, 1\\]"),
        ({"policies": ["hetlora"], "grid": {"seed": [1]}}, "seed is set by the comparison"),
        ({"policies": ["hetlora"], "grid": {"training.learning_rate": 1}}, "needs a list of values"),
        ({"policies": ["hetlora"], "grid": {"training.speed": [1]}}, "no key 'speed'"),
        ({"policies": ["hetlora"], "tune": {"training.learning_rate": [1e-3]}}, "nothing to choose"),
        ({"policies": ["hetlora"], "tune": {"training.learning_rate": [1e-3, 1e-2]}}, "validation_share"),
        ({"policies": ["hetlora"], "target": 1.5}, "between 0 and 1, found 1.5"),
        ({"policies": ["hetlora"], "select_on": "test"}, "test rows must not choose"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_first_run(small, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fedray.compare(small, out=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_command_line_prints_a_line_a_run_and_the_table(done, small, tmp_path, capsys):
    out, path = shutil.copytree(done.out, tmp_path / "out"), tmp_path / "small.yaml"
    path.write_text(config_to_yaml(fedray.load_config(small)))
    given = ["compare", str(path), "--out", str(out), "--policies", "hetlora", "--seeds", "1"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "run   5/5" in said
    assert "everybody_smallest, seed 0" in said
    assert said.splitlines()[-1].startswith("Report: ")
    assert main([*given, "--grid", "data.max_length=16"]) == MISTAKE
    assert "KEY=[a, b]" in capsys.readouterr().err
