"""What a run says while it goes: a line for every round, and on a terminal a bar before and inside them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedray.units import show_seconds

if TYPE_CHECKING:
    from fedray.comparison.entrants import Trial
    from fedray.comparison.runs import ShowTrial
    from fedray.record import RoundRecord
    from fedray.report.reading import Run
    from fedray.watched import Doing, Watch

Show = Callable[["RoundRecord"], None]


@contextmanager
def shown_rounds() -> Iterator[tuple[Show, "Watch | None"]]:
    """What a run calls with each finished round, and on a terminal with each step inside one.

    Anywhere else a finished round is a line and there is nothing more.
    """
    with _shown(progress_line) as shown:
        yield shown


@contextmanager
def shown_trials() -> Iterator[tuple["ShowTrial", "Watch | None"]]:
    """The same for a comparison: a line for every run."""
    with _shown(trial_line) as shown:
        yield shown


@contextmanager
def _shown(line: Callable[..., str]) -> Iterator[tuple[Callable[..., None], "Watch | None"]]:
    if not sys.stdout.isatty():
        yield lambda *finished: print(line(*finished), flush=True), None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        # Until somebody works it only moves: weights are read then, footprints traced, leakage measured.
        bar = progress.add_task("preparing", total=None, count="")

        def show(*finished: object) -> None:
            progress.update(bar, visible=False)
            progress.console.print(line(*finished), markup=False, soft_wrap=True)

        def watch(number: int, doing: "Doing", done: int, total: int) -> None:
            count = f"{done}/{total} {'rows' if doing == 'evaluation' else 'clients'}"
            progress.update(
                bar,
                description=f"round {number:>3}  {doing:<10}",
                completed=done,
                total=total,
                count=count,
                visible=True,
                refresh=done in (0, total),  # between them ten times a second
            )

        yield show, watch


def left_line(out: Path, report: Path | None) -> str:
    """Where to look when a run is over."""
    return f"Report: {report}" if report else f"Records: {out} (fedray report {out} draws a page)"


def trial_line(done: int, total: int, trial: "Trial", run: "Run") -> str:
    """A finished run of a comparison in one line."""
    last = next((record.accuracy for record in reversed(run.rounds) if record.accuracy is not None), None)
    parts = [
        f"run {done:>3}/{total}",
        f"accuracy {'     -' if last is None else format(last, '6.3f')}",
        f"virtual {show_seconds(sum(record.virtual_seconds for record in run.rounds)):>11}",
        f"wall {show_seconds(sum(record.wall_seconds for record in run.rounds)):>11}",
        str(trial),
    ]
    return "  ".join(parts)


def progress_line(record: "RoundRecord") -> str:
    """A finished round in one line: accuracy and loss if it was evaluated, both clocks, outcomes."""
    scores = (("accuracy", record.accuracy), ("loss", record.loss))
    outcomes = (
        ("ok", record.num_ok),
        ("late", record.num_late),
        ("dropped", record.num_dropped),
        ("oom", record.num_oom),
        ("failed", record.num_failed),
    )
    parts = [
        f"round {record.round:>3}",
        *(f"{name} {'     -' if score is None else format(score, '6.3f')}" for name, score in scores),
        f"virtual {show_seconds(record.virtual_seconds):>11}",
        f"wall {show_seconds(record.wall_seconds):>7}",
        ", ".join(f"{count} {name}" for name, count in outcomes if count or name == "ok"),
    ]
    return "  ".join(parts)
