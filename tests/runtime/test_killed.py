"""Overlapping rounds whose worker, shard and driver are killed in the middle, and go on to the same end."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from fedray.config import load_config
from fedray.config.loading import config_to_yaml
from fedray.engine import resume, run
from tiny_run import assert_same_run, merged, records

# Ends the first worker that trains, and the first shard that serves one, once each.
TASK = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
import ray
from fedray.training.tasks import text_classification

@dataclass(kw_only=True)
class Deadly(text_classification.TextClassification):
    marker: str

    def loss(self, forward, batch):
        works = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        if works and self.is_first("shard" if "deepspeed" in sys.modules else "worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(forward, batch)

    def is_first(self, kind):
        # Two may be here at once, and one of them alone makes the file.
        try:
            (Path(self.marker) / kind).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
"""
# Ends the driver when it is asked for the second time in round 3: some have landed, others are on their way.
# Every third client keeps the whole model, the others have a cut, half of them a tail.
POLICY = """
import os, signal
from pathlib import Path

import numpy as np

class Deadly:
    def __init__(self, *, marker):
        self.marker = Path(marker)

    def assign(self, cohort, offers, state):
        asked = state.get("asked", 0) + 1
        if cohort.round == 3 and state.get("round") == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        cut = np.array([entry.split for entry in offers.menu])
        tail = np.array([entry.tail for entry in offers.menu])
        wanted = (cohort.client_ids % 3)[None]
        key = np.where(wanted == 0, ~cut[:, None], cut[:, None] & (tail[:, None] == wanted - 1))
        chosen = offers.best(key * 1000 + offers.sum_of_ranks[:, None])
        return chosen, {"asked": asked, "round": cohort.round}
"""
CUTS = {
    "menu": {"cuts": [1], "tails": [0, 1]},
    # So slow that who sets out finds others aboard.
    "server": {"engine": "zero", "num_shards": 2, "flops_per_s": 1e7},
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_worker_shard_and_driver_killed_in_overlapping_rounds_leave_what_an_unbroken_run_does(
    tiny, home, address, tmp_path
):
    pytest.importorskip("deepspeed", reason="shards need the extra 'server'")
    task, policy = tmp_path / "deadly_task.py", tmp_path / "deadly_policy.py"
    task.write_text(TASK)
    policy.write_text(POLICY)
    marks = tmp_path / "marks"
    marks.mkdir()
    config = merged(
        merged(tiny, CUTS),
        {
            "task": {"name": str(task), "options": {"marker": str(marks)}},
            "policy": {"name": str(policy), "options": {"marker": str(marks / "driver")}},
            "pace": {"goal": 2, "late": "join", "staleness": "polynomial"},
            "rounds": {"num_rounds": 4, "clients_per_round": 4},
            "audit": {"distinct": False, "share": 0.0},
            "runtime": "on_ray",
            "ray": {"address": address, "num_actors": 2},
        },
    )
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    code = command(home, tmp_path / "config.yaml", config, broken)
    assert code.returncode == -signal.SIGKILL, code.stderr
    assert {mark.name for mark in marks.iterdir()} == {"worker", "shard", "driver"}
    assert len(records(broken, "rounds")) == 2
    assert 2 in {row["attempts"] for row in records(broken, "clients", drop=())}
    resume(broken)
    assert len(records(broken, "rounds")) == 4
    assert any(row["staleness"] for row in records(broken, "clients"))
    assert any(row["waiting_seconds"] for row in records(broken, "clients"))
    here = {name: value for name, value in config.items() if name != "ray"}
    run(load_config({**here, "runtime": "local"}), whole)
    assert_same_run(broken, whole)


def command(home: Path, file: Path, config: dict, out: Path) -> subprocess.CompletedProcess[str]:
    """``fedray run`` in a process of its own, in this one's cluster."""
    file.write_text(config_to_yaml(load_config(config)))
    cache, arguments = str(home / ".cache" / "fedray" / "footprints"), ["run", str(file), "--out", str(out)]
    code = (
        "import sys; from pathlib import Path; from fedray import engine; from fedray.cli import main; "
        f"engine.CACHE_DIR = Path({cache!r}); sys.exit(main({arguments!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
