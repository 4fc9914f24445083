"""Lines of rounds anywhere, and on a terminal a bar inside a round that leaves nothing behind."""

import os
import pty
import re
import subprocess
import sys

import pytest
import yaml

from fedray.cli import main
from fedray.record import RoundRecord
from fedray.terminal import left_line, progress_line
from tiny_run import merged

LINE = r"round   \d  accuracy  [\d.]+  loss  [\d.]+  virtual .* wall .* 5 ok"


def test_a_round_is_one_line_with_both_clocks_and_what_became_of_the_clients():
    record = RoundRecord(
        round=7,
        accuracy=0.7214,
        loss=0.98765,
        virtual_seconds=93.4,
        wall_seconds=4.25,
        up_bytes=1,
        down_bytes=1,
        joules=1.0,
        num_ok=9,
        num_late=2,
        num_dropped=0,
        num_oom=0,
        num_failed=1,
        drift=0.0,
    )
    assert progress_line(record) == (
        "round   7  accuracy  0.721  loss  0.988  virtual  1 min 33 s  wall   4.2 s  9 ok, 2 late, 1 failed"
    )


def test_without_a_report_the_last_line_says_what_draws_one(tmp_path):
    assert left_line(tmp_path, tmp_path / "report.html") == f"Report: {tmp_path / 'report.html'}"
    assert left_line(tmp_path, None) == f"Records: {tmp_path} (fedray report {tmp_path} draws a page)"


@pytest.fixture
def command(tiny, home, tmp_path):
    config = merged(tiny, {"rounds": {"num_rounds": 2}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    code = f"import sys; from fedray.cli import main; sys.exit(main({arguments!r}))"
    environment = {**os.environ, "HOME": str(home), "TERM": "xterm", "COLUMNS": "120"}
    return {"args": [sys.executable, "-c", code], "env": environment, "timeout": 180}


def test_without_a_terminal_a_run_prints_its_rounds_and_its_report_alone(tiny, capsys, tmp_path):
    config = merged(tiny, {"rounds": {"num_rounds": 2}, "report": True})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]) == 0
    *rounds, report = capsys.readouterr().out.splitlines()
    assert len(rounds) == 2
    assert all(re.fullmatch(LINE, line) for line in rounds)
    assert report == f"Report: {tmp_path / 'out' / 'report.html'}"


def test_on_a_terminal_a_bar_counts_clients_and_rows_and_goes_away(command, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command["args"], env=command["env"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # Linux's way to say that the other end was closed
        pass
    os.close(ours)
    assert process.communicate(timeout=60)[1] is not None
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    assert text.lstrip().startswith("preparing")
    for number in (1, 2):
        assert f"round   {number}  training" in text
    assert "5/5 clients" in text
    assert "40/40 rows" in text
    lines = [line for line in re.split(r"[\r\n]+", text) if re.fullmatch(LINE, line.strip())]
    assert len(lines) == 2
    assert text.rstrip().endswith("draws a page)")
