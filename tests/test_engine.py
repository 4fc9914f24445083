"""Whole runs on a tiny model: what they leave, every policy and rule, and resuming after kill -9."""

import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import fedray
from fedray import checkpoint
from fedray.config import load_config
from fedray.engine import play_round, run
from fedray.errors import ConfigError, NothingFits, TrainingError
from fedray.evaluation import evaluate
from tiny_run import KIB, assert_same_run, merged, opened, played, records, save_fleet, save_model

POLICIES = ("largest_that_fits", "everybody_smallest", "drop_weak", "hetlora")
# Ends its own process in the middle of round 3, and while round 2's checkpoint is half-written; it gives
# more to whom it asked less, so that a state that came back otherwise would show.
DEADLY = """
import os, signal
from pathlib import Path
import numpy as np

def die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)

class Trap(dict):
    def __init__(self, marker, deadly):
        super().__init__(left="nothing")
        self.marker, self.deadly = marker, deadly
    def items(self):
        if self.deadly:
            die_once(self.marker)
        return super().items()

class Fair:
    aggregation = "hetlora"
    def __init__(self, *, folder):
        self.folder = folder
    def assign(self, cohort, offers, state):
        if cohort.round == 3:
            die_once(f"{self.folder}/in-round-3")
        asked = state.get("asked", np.zeros(8, np.float32))
        key = np.where(asked[cohort.client_ids] > asked.mean(), -1, 1) * offers.sum_of_ranks[:, None]
        return offers.best(key), {**state, "asked": asked}
    def observe(self, rows, state):
        asked = state["asked"].copy()
        for row in rows:
            asked[row["client_id"]] += 1 / 3
        trap = Trap(f"{self.folder}/in-checkpoint-2", rows[0]["round"] == 2)
        return {**state, "asked": asked, "trap": trap, "rounds": state.get("rounds", 0) + 1}
"""


def left(config, out):
    return run(load_config(config), out)


def command(home, *arguments):
    code = f"import sys; from fedray.cli import main; sys.exit(main({list(map(str, arguments))!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_run_leaves_what_the_house_says_and_says_the_same_twice(tiny, tmp_path):
    with_page = {**tiny, "report": True}
    first = left(with_page, tmp_path / "one")
    left(with_page, tmp_path / "two")
    assert first.report == tmp_path / "one" / "report.html"
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "adapter", "checkpoint", "classes.parquet", "clients.parquet", "config.yaml", "devices.parquet",
        "environment.json", "evaluations.parquet", "report.html", "rounds.parquet",
    ]  # fmt: skip
    assert [record.round for record in first.rounds] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "one" / "checkpoint").iterdir()] == ["round-000003"]
    assert load_config(tmp_path / "one" / "config.yaml") == load_config(
        load_config(tmp_path / "two" / "config.yaml")
    )


def test_bytes_are_as_predicted_and_audits_within_two_percent_and_memory(tiny):
    result = played(merged(tiny, {"audit": {"share": 1.0}}))
    assert len(result.clients) == 15
    for record in result.clients:
        assert record.outcome == "ok"
        assert (record.up_bytes, record.down_bytes) == (
            record.predicted_up_bytes,
            record.predicted_down_bytes,
        )
        assert record.measured_peak_bytes <= record.memory_bytes
        assert abs(record.measured_peak_bytes / record.predicted_peak_bytes - 1) < 0.02
        assert record.attempts == 1
    assert len({record.assignment for record in result.clients}) >= 2
    first_contacts = [r for r in result.clients if r.provision_bytes]
    assert len(first_contacts) == len({r.client_id for r in result.clients})


def test_each_piece_of_work_is_audited_once(tiny):
    result = played(merged(tiny, {"audit": {"share": 0.0}}))
    audited = [record.assignment for record in result.clients if record.measured_peak_bytes]
    assert len(audited) >= 2
    assert sorted(audited) == sorted({record.assignment for record in result.clients})


def test_a_run_killed_in_a_checkpoint_and_in_a_round_ends_as_an_unbroken_one(tiny, home, tmp_path):
    policy, marks = tmp_path / "fair.py", tmp_path / "marks"
    policy.write_text(DEADLY)
    marks.mkdir()
    config = merged(
        tiny,
        {
            "policy": {"name": str(policy), "options": {"folder": str(marks)}},
            "rounds": {"num_rounds": 4},
            "dropouts": True,
            # Shadows begin where the run began, also in a process that did not see that.
            "attacks": {"membership": True, "rows": 8, "shadows": 4, "shadow_epochs": 1},
        },
    )
    file, broken = tmp_path / "config.yaml", tmp_path / "broken"
    file.write_text(str(config).replace("'", '"').replace("True", "true"))
    first = command(home, "run", file, "--out", broken)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert sorted(p.name for p in (broken / "checkpoint").iterdir()) == ["round-000001", "round-000002.part"]
    assert len(records(broken, "rounds")) == 2  # a round ahead of its checkpoint
    second = command(home, "resume", broken)
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert [p.name for p in (broken / "checkpoint").iterdir()] == ["round-000002"]
    fedray.resume(broken)
    assert len(list(marks.iterdir())) == 2
    left(config, tmp_path / "whole")
    assert_same_run(broken, tmp_path / "whole")
    assert records(broken, "rounds")[-1]["membership_ratio_auc"] is not None
    states = [checkpoint.load(out) for out in (broken, tmp_path / "whole")]
    assert states[0].policy_state["rounds"] == states[1].policy_state["rounds"] == 4
    assert np.array_equal(states[0].policy_state["asked"], states[1].policy_state["asked"])
    held = [state.holdings.to_arrays()["held"] for state in states]
    assert held[0].any()
    assert np.array_equal(*held)


def test_a_run_that_is_done_resumes_to_itself(tiny, tmp_path):
    config = merged(tiny, {"rounds": {"num_rounds": 1}})
    left(config, tmp_path / "out")
    before = records(tmp_path / "out", "rounds", drop=())
    fedray.resume(tmp_path / "out")
    assert records(tmp_path / "out", "rounds", drop=()) == before


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs(tiny, policy):
    result = played(merged(tiny, {"policy": policy, "rounds": {"num_rounds": 2}}))
    assert all(record.num_ok >= 1 for record in result.rounds)
    ranks = {record.assignment for record in result.clients}
    assert len(ranks) == (1 if policy in ("everybody_smallest", "drop_weak") else len(ranks))


def test_within_deadline_and_the_pace_agree_who_is_late(tiny):
    """Offers say how long a trip takes; the clock then closes the round at that moment."""
    pace = {"pace": {"deadline_seconds": 1.5}}
    eager = played(merged(tiny, pace))
    late = [record for record in eager.clients if record.outcome == "late"]
    assert late
    assert all(record.up_bytes < record.predicted_up_bytes and record.loss is None for record in late)
    assert all(record.virtual_seconds == 1.5 for record in late)
    assert all(record.virtual_seconds <= 1.5 for record in eager.rounds)
    policy = {"name": "within_deadline", "options": {"deadline_seconds": 1.5, "leave_out": True}}
    patient = played(merged(tiny, {**pace, "policy": policy}))
    assert {record.outcome for record in patient.clients} == {"ok"}


def test_clients_that_leave_are_dropped_and_their_work_is_not_counted(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", availability=[0.4] * 8)
    result = played(merged(tiny, {"fleet": fleet, "dropouts": True}))
    dropped = [record for record in result.clients if record.outcome == "dropped"]
    assert 0 < len(dropped) < len(result.clients)
    assert all(record.wall_seconds is None and record.attempts == 0 for record in dropped)
    assert [r.num_dropped for r in result.rounds] == [
        sum(d.round == r.round for d in dropped) for r in result.rounds
    ]


RULES = [
    "hetlora",
    "flexlora",
    "flexlora_delta",
    "raflora",
    "flora",
    "fedit",
    "rbla",
    "ffa_lora",
    "fedex_lora",
]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_runs_and_sends_what_it_says(tiny, rule):
    result = played(merged(tiny, {"aggregation": rule, "rounds": {"num_rounds": 2}}))
    for record in result.clients:
        assert record.outcome == "ok"
        assert record.down_bytes == record.predicted_down_bytes
        assert record.up_bytes == record.predicted_up_bytes
    assert len({record.predicted_up_bytes for record in result.clients}) >= 2  # ranks were unlike
    # flexlora averages what clients ended with, so what they did not hold wears away; round 1 has nothing.
    lossy = rule in ("flexlora", "fedit", "hetlora")
    assert (result.rounds[1].drift > 0) is lossy
    assert result.rounds[0].drift == 0
    grows = result.clients[-1].predicted_down_bytes > result.clients[-1].predicted_up_bytes
    assert grows is (rule in ("flora", "fedex_lora"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_what_flora_leaves_gives_the_logits_of_its_state(tiny, tmp_path):
    left(merged(tiny, {"aggregation": "flora"}), tmp_path / "out")
    state = checkpoint.load(tmp_path / "out").state
    assert len(state.base_delta) == 8
    ids = torch.arange(4, 20).view(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        dense = AutoModel.from_pretrained(tiny["model"], add_pooling_layer=False).eval()
        untouched = dense(**batch).last_hidden_state
        for part in (state.adapter.factors, state.base_delta):
            for site, f in part.items():
                dense.get_submodule(site).weight.add_(f.scale * f.b @ f.a)
        expected = dense(**batch).last_hidden_state
        base = AutoModel.from_pretrained(tiny["model"], add_pooling_layer=False)
        peft = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
        found = peft(**batch).last_hidden_state
    assert (expected - untouched).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_round_in_which_nothing_fits_anybody_is_recorded_and_the_run_goes_on(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib=[60, 60, 60, 400, 60, 60, 60, 60])
    policy = tmp_path / "counting.py"
    policy.write_text(
        "def _count(rows, state): return {'seen': [*state.get('seen', []), len(rows)]}\n"
        "class Counting:\n"
        "    def select(self, view, state): return [[0, 1], [3, 4], [5]][view.round - 1]\n"
        "    def assign(self, cohort, offers): return offers.best(offers.sum_of_ranks)\n"
        "    def observe(self, rows, state): return _count(rows, state)\n"
    )
    left(merged(tiny, {"fleet": fleet, "policy": str(policy)}), tmp_path / "out")
    rounds = records(tmp_path / "out", "rounds")
    assert [record["num_ok"] for record in rounds] == [0, 1, 0]
    assert [record["virtual_seconds"] > 0 for record in rounds] == [False, True, False]
    assert rounds[0]["up_bytes"] == rounds[0]["down_bytes"] == 0
    assert rounds[2]["accuracy"] == rounds[1]["accuracy"] is not None
    # Each round the policy sees that round's clients alone.
    assert checkpoint.load(tmp_path / "out").policy_state["seen"] == [0, 1, 0]


def test_a_fleet_that_nothing_fits_is_refused_before_a_weight_is_read(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib=[60, 61, 60, 60, 60, 60, 60, 60])
    with pytest.raises(NothingFits, match=r"None of 4 assignments fits any of 8 clients: client 1 \(phone\)"):
        left(merged(tiny, {"fleet": fleet}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pace_from_two_sides_is_refused(tiny, tmp_path):
    policy = tmp_path / "paced.py"
    policy.write_text(
        "from fedray.policy import Pace\n"
        "pace = Pace(goal=3)\n"
        "def assign(cohort, offers): return offers.best(offers.sum_of_ranks)\n"
    )
    config = merged(tiny, {"policy": str(policy), "rounds": {"num_rounds": 1}})
    with pytest.raises(ConfigError, match=r"pace.deadline_seconds has no effect with the policy 'paced'"):
        played(merged(config, {"pace": {"deadline_seconds": 3.0}}))
    result = played(config)
    assert (result.rounds[0].num_ok, result.rounds[0].num_late) == (3, 2)


def test_bf16_runs_beside_fp32_and_needs_less_memory(tiny, tmp_path):
    menu = {"menu": {"ranks": [2], "depths": [1], "dtypes": ["fp32", "bf16"]}}
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib=[90, 400] * 4)
    policy = tmp_path / "precise.py"
    policy.write_text(
        "import numpy as np\n"
        "def assign(cohort, offers):\n"
        "    return offers.best(np.array([e.dtype == 'fp32' for e in offers.menu]))\n"
    )
    result = played(merged(tiny, {**menu, "fleet": fleet, "policy": str(policy)}))
    peaks = {dtype: {r.predicted_peak_bytes for r in result.clients if dtype in r.assignment}
             for dtype in ("bf16", "fp32")}  # fmt: skip
    assert max(peaks["bf16"]) < min(peaks["fp32"])
    assert {record.outcome for record in result.clients} == {"ok"}
    assert all(
        abs(r.measured_peak_bytes / r.predicted_peak_bytes - 1) < 0.02
        for r in result.clients
        if r.measured_peak_bytes
    )


def test_a_run_learns(tiny):
    config = merged(
        tiny, {"rounds": {"num_rounds": 8}, "training": {"learning_rate": 5e-2, "num_train_epochs": 2}}
    )
    result = played(config)
    # Every label has words of its own; a guess is right one time in four.
    assert result.rounds[-1].accuracy > 0.6
    assert result.rounds[-1].loss < result.rounds[0].loss


def test_a_loss_that_is_not_a_number_ends_a_new_run_and_takes_its_folder_along(tiny, tmp_path):
    config = merged(tiny, {"training": {"learning_rate": 1e38}})
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingError, match=r"All 5 clients of round 1 failed.*training.learning_rate"):
        left(config, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_causal_lm_runs_by_natural_clients_and_is_evaluated_on_unseen_ones(tiny, home):
    config = merged(
        tiny,
        {
            "model": save_model(home / "llama", "llama"),
            "task": "causal_lm",
            "data": {"partitioner": {"name": "natural_id", "column": "writer"}, "unseen_clients": 2},
            "training": {"learning_rate": 2e-2},
            "rounds": {"num_rounds": 2},
        },
    )
    del config["data"]["num_clients"]
    result = played(config)
    unseen = [record for record in result.evaluations if record.split == "unseen"]
    assert {record.client_id for record in unseen} == {0, 1}
    with pytest.raises(ConfigError, match=r"menu.head_only offers a trained head alone"):
        played(merged(config, {"menu": {"head_only": True}}))


def test_a_pretrained_decoder_loses_loss_on_speakers_it_never_trained_on(shared, home, tmp_path):
    turns = pq.read_table(shared / "data" / "text" / "tinyshakespeare_turns.parquet")
    names = turns.column("speaker").to_pylist()
    most = [name for name, _ in Counter(names).most_common(8)]
    spoken = turns.filter(np.isin(names, most))
    pq.write_table(spoken, tmp_path / "turns.parquet")
    config = {
        "model": str(shared / "data" / "models" / "stories260K"),
        "task": "causal_lm",
        "data": {
            "source": str(tmp_path / "turns.parquet"),
            "partitioner": {"name": "natural_id", "column": "speaker"},
            "unseen_clients": 2,
            "max_length": 64,
            "max_rows": 500,
        },
        "fleet": save_fleet(tmp_path / "fleet.csv", memory_kib=[64 * KIB] * 8),
        "menu": {"ranks": [8], "depths": ["all"], "target_modules": ["q_proj", "v_proj", "down_proj"]},
        "training": {"learning_rate": 1e-2, "max_steps": 8},
        "rounds": {"num_rounds": 2, "clients_per_round": 4},
        "audit": {"distinct": False, "share": 0.0},
        "runtime": "local",
    }
    scene, progress, runtime = opened(config)
    before = evaluate(scene, progress.state, 0, runtime)
    for number in (1, 2):
        assert play_round(scene, progress, runtime, number).num_ok == 4
    after = [record for record in progress.evaluations if record.round == 2]
    loss = [np.mean([r.loss for r in found if r.split == "unseen"]) for found in (before, after)]
    assert loss[1] < loss[0] - 0.2
