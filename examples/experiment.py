"""What the experiments in this folder share: runs that go on when called again, a table, a picture."""

import argparse
import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fedray

Rows = Sequence[Mapping[str, Any]]


def options(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """What all experiments are told, under the first line of a script; ``rounds`` is a default."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the runs, the table and the picture")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each run")
    return parser


def ran(out: Path, config: Mapping[str, Any], policy: Any = None) -> Path:
    """The folder of the run, finished: as it is, gone on with, or begun."""
    if (out / "report.html").exists():
        return out
    if (out / "checkpoint").exists():
        fedray.resume(out, policy=policy)
    else:
        shutil.rmtree(out, ignore_errors=True)
        fedray.run(config, out=out, policy=policy)
    return out


def write(
    rows: Rows, out: Path, draw: Callable[[Rows, Path], None], columns: Sequence[str] | None = None
) -> None:
    """The table and the picture of what is done so far; columns are the first row's unless told."""
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, out / "picture.png")


def close(rows: Rows, out: Path, show: Callable[[Rows], None]) -> None:
    """The whole table on the terminal, and where to find it."""
    print()
    show(rows)
    print(f"\n{out / 'table.csv'}, {out / 'picture.png'}")
