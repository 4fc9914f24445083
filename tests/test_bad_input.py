"""What goes wrong in a user's hands: one clear sentence, an exit code, and nothing half-written."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys

import pytest
import yaml

from fedray.cli import main
from tiny_run import merged, save_fleet


@pytest.fixture
def told(tiny, tmp_path, capsys):
    """Runs a changed configuration and returns the exit code and what was said of it."""

    def run(changes, *arguments):
        file, out = tmp_path / "config.yaml", tmp_path / "out"
        file.write_text(yaml.safe_dump(merged(tiny, changes)))
        code = main(["run", str(file), "--out", str(out), *arguments])
        said = capsys.readouterr().err
        assert not out.exists()
        return code, said

    return run


def one_sentence(answer, *parts):
    """Whether the answer is a single line that holds these parts, with an exit code that says so."""
    code, said = answer
    assert code == 2, said
    lines = [line for line in said.splitlines() if not line.startswith(("Writing model", "Loading"))]
    assert len(lines) == 1, said
    assert lines[0].startswith("fedray: ")
    assert all(part in lines[0] for part in parts), said


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"rounds": {"num_round": 3}}, ("rounds.num_round", "did you mean", "num_rounds")),
        ({"rounds": {"num_rounds": "three"}}, ("rounds.num_rounds", "whole number", "'three'")),
        ({"data": {"source": "/nowhere/rows.jsonl"}}, ("data.source names a file", "/nowhere/rows.jsonl")),
        ({"fleet": "/nowhere/fleet.csv"}, ("fleet names a file", "/nowhere/fleet.csv")),
        ({"policy": "/nowhere/policy.py"}, ("policy", "/nowhere/policy.py")),
        ({"policy": "largest_that_fit"}, ("'largest_that_fit'", "Did you mean 'largest_that_fits'?")),
        ({"task": "text_classificatio"}, ("'text_classificatio'", "text_classification")),
        ({"aggregation": "fedavg"}, ("'fedavg'", "factor_mean")),
        ({"menu": {"target_modules": ["q_proj"]}}, ("q_proj", "query")),
        ({"task": "causal_lm"}, ("'bert'", "causal_lm")),
        ({"report_to": "tensorbord"}, ("'tensorbord'", "tensorboard")),
    ],
)
def test_a_word_that_is_wrong_is_named_with_the_right_ones(told, changes, parts):
    one_sentence(told(changes), *parts)


def test_a_tracker_that_is_not_installed_is_missed_before_anything_is_trained(told):
    one_sentence(
        told({"report_to": ["aim"]}), "report_to asks for aim, which is not installed", "pip install"
    )


def test_an_unknown_family_is_named_with_the_known_ones(told, tmp_path):
    folder = tmp_path / "opt"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "opt"}))
    one_sentence(told({"model": str(folder)}), "'opt'", "known are bert")


def test_a_client_without_rows_is_named(told):
    partitioner = {"name": "dirichlet", "alpha": 0.001, "min_partition_size": 1}
    one_sentence(
        told({"data": {"partitioner": partitioner, "num_clients": 80, "per_client": True}}), "client"
    )


def test_a_table_with_fewer_devices_than_clients_is_refused(told, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib=[400, 400])
    one_sentence(told({"fleet": fleet}), "num_clients is 8", "has 2 clients")


def test_rows_without_the_column_that_is_asked_for_list_those_there_are(told):
    one_sentence(
        told({"task": {"name": "text_classification", "options": {"text_column": "body"}}}),
        "'body'",
        "text, label, writer",
    )


def test_a_loss_that_is_not_a_number_ends_the_run(told):
    one_sentence(told({"training": {"learning_rate": 1e38}}), "is nan", "Lower training.learning_rate")


def test_a_fleet_where_nothing_fits_says_how_much_is_missing(told, tmp_path):
    fleet = save_fleet(tmp_path / "fleet.csv", memory_kib=[64] * 8)
    one_sentence(told({"fleet": fleet}), "None of 4 assignments fits any of 8 clients", "has 64.0 KiB")


def test_a_policy_that_raises_is_shown_its_own_line(told, tmp_path):
    policy = tmp_path / "broken.py"
    policy.write_text("def assign(cohort, offers):\n    return offers.nonsense\n")
    one_sentence(told({"policy": str(policy)}), f"{policy}:2", "nonsense")


def process(home, *arguments, seconds=120):
    code = f"import sys; from fedray.cli import main; sys.exit(main({list(map(str, arguments))!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.mark.ray
def test_an_address_without_a_cluster_is_one_sentence_and_not_five_minutes(tiny, home, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**tiny, "runtime": "on_ray"}))
    # Ray's own patience was measured as 327 seconds, after which it ended the process.
    address = f"127.0.0.1:{port}"
    ended = process(home, "run", file, "--out", tmp_path / "out", "--address", address, seconds=90)
    said = [line for line in ended.stderr.splitlines() if line.startswith("fedray: ")]
    assert ended.returncode == 2
    assert len(said) == 1
    assert f"No Ray cluster could be reached at '{address}'" in said[0]
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 32 KiB, where this machine lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_at_the_first_round_takes_the_folder_along(tiny, full_disk, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny))
    code = main(["run", str(file), "--out", str(full_disk / "out")])
    one_sentence((code, capsys.readouterr().err), "Round 1 could not be written", "No space left")
    assert not (full_disk / "out").exists()


def test_files_that_may_not_grow_end_a_later_round_and_the_run_resumes(tiny, tmp_path, capsys):
    file, out = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(merged(tiny, {"rounds": {"num_rounds": 1}})))
    assert main(["run", str(file), "--out", str(out)]) == 0
    (out / "config.yaml").write_text(
        (out / "config.yaml").read_text().replace("num_rounds: 1", "num_rounds: 2")
    )
    capsys.readouterr()
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code = main(["resume", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_sentence(
        (code, capsys.readouterr().err),
        "Round 2 could not be written",
        f"fedray resume {out}",
        "File too large",
    )
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert main(["resume", str(out)]) == 0
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["round-000002"]


def test_a_torn_checkpoint_is_refused_and_named(tiny, tmp_path, capsys):
    file, out = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(merged(tiny, {"rounds": {"num_rounds": 1}})))
    assert main(["run", str(file), "--out", str(out)]) == 0
    capsys.readouterr()
    (folder,) = (out / "checkpoint").iterdir()
    for name in sorted(path.name for path in folder.iterdir()):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        one_sentence(
            (main(["resume", str(out)]), capsys.readouterr().err), "The checkpoint", "cannot be read"
        )
        (folder / name).write_bytes(whole)
