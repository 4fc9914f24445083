"""What the examples and the README show is true: they load, run, and are what the README prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import fedray
from fedray.cli import main
from fedray.config import load_config
from fedray.config.loading import config_to_yaml
from fedray.policy_loading import load_policy
from fedray.python_file import run_file
from fedray.training.optimizer import LocalOptimizer
from fedray.training.task import load_task
from fedray.training.train import train_pack
from shop import assign, build, job
from tiny_run import merged

TEN_LINES = """
import torch
from torch.nn.functional import softplus

class Margin:
    head = "classification"
    def labels(self, rows): return 2
    def features(self, row, tokenizer, max_length): return {"input_ids": [1, 2], "label": row["y"]}
    def loss(self, forward, batch):
        logits = forward(batch)
        sign = 2.0 * (batch["label"] % 2) - 1
        return softplus(-sign * (logits[:, 1] - logits[:, 0]))
    def outputs(self, forward, batch): return [{"loss": x} for x in self.loss(forward, batch).tolist()]
    def metrics(self, outputs, rows): return {"accuracy": 0.0, "loss": 0.0}
"""


def test_every_example_configuration_is_valid(repository: Path) -> None:
    found = sorted((repository / "examples").glob("*.yaml"))
    assert len(found) >= 4
    for path in found:
        assert load_config(path).rounds.num_rounds > 0


def test_the_runs_that_compare_what_is_trained_are_valid_and_of_four_kinds(repository: Path) -> None:
    example = run_file(repository / "examples" / "peft_vs_full.py", "example")
    tunings = [load_config(example.configuration(kind, 20)).menu.tunings for kind in example.KINDS]
    assert tunings == [("lora",), ("prompt",), ("bitfit",), ("full",)]


def test_the_runs_of_accuracy_and_epsilon_are_valid(repository: Path) -> None:
    example = run_file(repository / "examples" / "accuracy_and_epsilon.py", "example")
    for kind in example.KINDS:
        config = load_config(example.configuration(kind, 0.5))
        if kind == example.AT_A_CUT:
            assert (config.privacy.cut_noise_multiplier, config.privacy.where) == (0.5, None)
            # Nothing is trained below the cut: there the promise is whole.
            assert config.menu.cuts == (2,)
            assert config.menu.depths == (2,)
        else:
            assert (config.privacy.where, config.privacy.noise_multiplier) == ("central", 0.5)


def test_the_runs_of_poisoning_are_valid_and_each_a_fifth_of_attackers(repository: Path) -> None:
    example = run_file(repository / "examples" / "poisoning.py", "example")
    for menu, attack, rule in example.settings():
        config = load_config(example.configuration(menu, attack, rule))
        assert config.attackers.name == attack
        assert attack == "none" or config.attackers.share == 0.2
        assert config.rounds.clients_per_round == config.data.num_clients == 20


def test_the_leakage_of_cuts_has_a_row_that_must_succeed_and_one_that_must_not(repository: Path) -> None:
    example = run_file(repository / "examples" / "leakage.py", "example")
    (plain, _), (drowned, _) = (example.WAYS[name] for name in ("as they are", "drowned: noise 1000"))
    assert (plain.codec, plain.noise) == ("none", 0.0)
    assert drowned.noise == 1000.0
    # Of updates: one row at a rank with room for its tokens, and factors whose B has not moved.
    assert 1 in example.BATCHES
    assert max(example.RANKS) >= 48
    assert example.STEPS[example.FRESH] == example.STEPS["sgd"]


def test_the_shootout_compares_eight_policies_with_the_plain_baselines_among_them(repository: Path) -> None:
    example = run_file(repository / "examples" / "policy_shootout.py", "example")
    assert len(example.KINDS) == 8
    assert {"ranks", "submodels", "cuts", "baseline"} <= set(example.KINDS.values())
    # A rule that is named in the configuration would be everybody's, and no paper's own.
    assert load_config(example.configuration(8, 2, None)).aggregation.name == "auto"
    for name in example.POLICIES:
        checked = load_config({**example.configuration(8, 2, None), "policy": name})
        assert load_policy(checked.policy.name).name == name
    assert load_config(example.configuration(8, 2, repository / "README.md")).data.max_rows == 2400


def _python_of(readme: str, wanted: str) -> str:
    """The one block of Python in the README that defines something."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if wanted in b]
    return block


def test_the_readmes_policy_and_task_are_compared_with_two_published_policies_by_its_command(
    repository: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (repository / "README.md").read_text()
    policy, task = _python_of(readme, "def assign(cohort"), _python_of(readme, "TextClassification)")
    for code, most in ((policy, 10), (task, 15)):
        assert len([line for line in code.splitlines() if line.strip()]) <= most
    (command,) = re.findall(r"^fedray (compare .*task=.*)$", readme, re.MULTILINE)
    # As a new user has it: two files of one's own, and rows in which some words are long.
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "deep_for_the_fast.py").write_text(policy)
    (tmp_path / "examples" / "longest_word.py").write_text(task)
    rows = tmp_path / "rows.jsonl"
    texts = [f"w1 w2 w{i % 44}" + " uncharacteristically" * (i % 2) for i in range(120)]
    rows.write_text("".join(json.dumps({"text": t, "label": str(i % 3)}) + "\n" for i, t in enumerate(texts)))
    rounds, training = {"num_rounds": 3, "clients_per_round": 6}, {"learning_rate": 3e-2}
    own = {"data": {"source": str(rows)}, "rounds": rounds, "training": training}
    text = config_to_yaml(load_config(merged(tiny, own)))
    (tmp_path / "examples" / "quickstart.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--seeds", "1"]) == 0
    found = pq.read_table(tmp_path / "runs" / "mine_or_theirs" / "comparison.parquet").to_pylist()
    accuracy = {r["policy"]: r["value"] for r in found if r["measure"] == "accuracy"}
    assert {"deep_for_the_fast", "hetlora", "flexlora"} <= set(accuracy)
    # Long words are unknown ones, so that is what is learnt; half of the rows have one.
    assert accuracy["deep_for_the_fast"] > 0.7


def test_the_readme_prints_the_quickstart_and_the_policy_as_they_are(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    assert (repository / "examples" / "quickstart.yaml").read_text().strip() in readme
    body = (repository / "examples" / "deep_for_the_fast.py").read_text().partition('"""One menu index')[2]
    for line in filter(None, map(str.strip, body.splitlines()[1:])):
        assert line in readme


def test_the_example_policy_loads_with_its_option(repository: Path) -> None:
    policy = load_policy(str(repository / "examples" / "deep_for_the_fast.py"), {"patience": 3.0})
    assert policy.name == "deep_for_the_fast"


def test_the_example_task_labels_long_words(repository: Path) -> None:
    task = load_task(repository / "examples" / "longest_word.py")
    assert task.labels([]) == 2

    def words(text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()][:max_length]}

    assert task.features({"text": "an uncharacteristically long one"}, words, 8)["label"] == 1
    assert task.features({"text": "short words only"}, words, 8)["label"] == 0


def test_a_task_of_fifteen_lines_is_loaded_by_path_and_packs(tmp_path: Path) -> None:
    file = tmp_path / "margin.py"
    file.write_text(TEN_LINES)
    assert len(TEN_LINES.strip().splitlines()) <= 15
    task = load_task(file)
    workshop = build("bert", [5, 9], LocalOptimizer(optim="sgd", learning_rate=0.1), task=task)
    jobs = [job(workshop, "bert", i, assign("bert", 4, 2 + i)) for i in range(2)]
    together = train_pack(workshop, jobs)
    for work, packed in zip(jobs, together, strict=True):
        (alone,) = train_pack(workshop, [work])
        assert packed.delta is not None
        assert alone.delta is not None
        for name, tensor in packed.delta.tensors().items():
            assert torch.allclose(tensor, alone.delta.tensors()[name], atol=1e-6)
        assert np.isfinite(packed.loss)


@pytest.mark.slow
def test_the_local_runtime_needs_no_ray(tiny: dict[str, Any], home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import fedray\n"
        f"r = fedray.run({tiny!r}, out={str(tmp_path / 'out')!r}, overrides=['rounds.num_rounds=1'])\n"
        "print(len(r.clients))"
    )
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "5"


@pytest.mark.slow
def test_the_quickstart_gives_unlike_ranks_depths_and_cuts_to_devices_of_many_classes(
    repository: Path,
) -> None:
    plan = fedray.plan(repository / "examples" / "quickstart.yaml")
    given = [client.assignment for client in plan.clients if client.assignment is not None]
    assert len(given) == len(plan.clients) >= 24
    assert len({assignment.max_rank for assignment in given}) >= 3
    assert len({assignment.num_trained_blocks for assignment in given}) >= 2
    assert len({client.device_class for client in plan.clients}) >= 4
    assert 3 <= sum(assignment.split for assignment in given) <= len(given) / 2
