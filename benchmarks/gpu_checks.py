"""Runs every check that needs an accelerator and prints a table: python benchmarks/gpu_checks.py."""

import sys

import pytest
import torch
from rich.console import Console
from rich.table import Table


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
    outcomes = Outcomes()
    status = pytest.main(["-q", "-m", "gpu", "tests", "--no-header"], plugins=[outcomes])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    table = Table("check", "outcome", "seconds", title=f"torch {torch.__version__}, {device}")
    for name, outcome, seconds in outcomes.rows:
        table.add_row(name, outcome, f"{seconds:.2f}")
    Console().print(table)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
