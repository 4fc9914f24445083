"""Runs every check that needs an accelerator and prints a table: ``python benchmarks/gpu_checks.py``.

They are the tests marked ``gpu``, then those of packed training and of cuts, moved to the accelerator: what
they hold a CPU's work to, they hold an accelerator's to. Further arguments are pytest's.
"""

import os
import sys

import pytest
import torch
from rich.console import Console
from rich.table import Table

MOVED = ["tests/training/test_packed.py", "tests/server/test_split_equals_whole.py"]


class Outcomes:
    """A pytest plug-in that keeps how every test went."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call, or the skip or failure before it."""
        if report.when == "call" or not report.passed:
            self.rows.append((report.nodeid, report.outcome, report.duration))


def main() -> int:
    """Pytest's exit status."""
    os.environ["FEDRAY_TEST_DEVICE"] = "cuda"  # before a test module reads it
    outcomes = Outcomes()
    asked = ["tests/test_accelerator.py", *MOVED, "-m", "not ray", *sys.argv[1:]]
    status = pytest.main(["-q", "--no-header", *asked], plugins=[outcomes])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    table = Table("check", "outcome", "seconds", title=f"torch {torch.__version__}, {device}")
    for name, outcome, seconds in outcomes.rows:
        if outcome != "passed" or "test_accelerator" in name:
            table.add_row(name, outcome, f"{seconds:.2f}")
    for module in sorted({name.partition("::")[0] for name, _, _ in outcomes.rows}):
        own = [row for row in outcomes.rows if row[0].startswith(module)]
        passed = sum(outcome == "passed" for _, outcome, _ in own)
        table.add_row(module, f"{passed} of {len(own)} passed", f"{sum(row[2] for row in own):.2f}")
    Console().print(table)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
