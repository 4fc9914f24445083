"""Eight policies on the devices of the edge: ranks, cuts, submodels, and what any of them has to beat.

MiniLM learns which of 16 Python modules a docstring comes from; model, texts and devices are on this machine
already. A quarter to a half of the devices hold less than training a whole model takes, several not even what
training the three blocks below the lowest cut takes, and the server above the cuts is a small one that all
share. All policies have the same menu, fleet, data and draws; a seed is another draw of all three::

    python examples/policy_shootout.py runs/shootout --seeds 5

prints a line a run and a table, and leaves `fedray.compare`'s page and tables, every run's own folder, and
``shootout.pdf`` and ``shootout.png``, a figure for a page's full width that a black and white printer can
show. Called again it goes on where it was broken off. With ``--data FILE`` the texts are those of a local
Parquet, CSV or JSON with columns text and label, such as Banking77's. Learning rates were not tuned.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fedray
from fedray.comparison import Comparison, Row, difference

# Each brings its own aggregation rule. drop_weak and everybody_smallest stand beside them in any comparison.
POLICIES = {
    "hetlora": "ranks",
    "flexlora": "ranks",
    "largest_that_fits": "ranks, depth",
    "fedra": "submodels",
    "deepest_cut": "cuts",
    "dtfl": "cuts",
}
KINDS = {**POLICIES, "drop_weak": "baseline", "everybody_smallest": "baseline"}
EVERYBODYS: dict[str, Any] = {
    "model": "minilm",
    "task": "text_classification",
    "data": {
        "source": "docstrings",
        "partitioner": {"name": "dirichlet", "alpha": 0.3, "min_partition_size": 8},
        "num_clients": 23,
        "unseen_clients": 1,
        "per_client": True,
        "test_share": 0.1,
        # What a device computes of a batch is as long as its longest row, so this is what memory is short of.
        "max_length": 128,
    },
    "fleet": "edge",
    "menu": {
        "ranks": [2, 4, 8, 16],
        "depths": [2, 4, "all"],
        "cuts": [3, 4],
        "per_device_train_batch_size": [8],
    },
    # Half of what the fleet's own Pi 5 declares: whoever rides it waits for the others aboard.
    "server": {"flops_per_s": 2e10},
    "training": {
        "learning_rate": 3e-3,
        "head_learning_rate": 2e-2,
        "lr_scheduler_type": "linear",
        "max_steps": 3,
    },
    "packs": {"clients_per_pack": 4},
    "audit": {"distinct": False, "share": 0.0},
    "runtime": "local",
}


def configuration(num_rounds: int, threads: int, data: Path | None) -> dict[str, Any]:
    """What all runs have in common."""
    source = {} if data is None else {"source": str(data), "max_rows": 2400}
    rounds = {"num_rounds": num_rounds, "clients_per_round": 4, "eval_rounds": max(1, num_rounds // 2)}
    packs = {**EVERYBODYS["packs"], "threads_per_pack": threads}
    return {**EVERYBODYS, "data": {**EVERYBODYS["data"], **source}, "packs": packs, "rounds": rounds}


def compared(given: argparse.Namespace) -> Comparison:
    """All runs; those that are there already are read."""
    started = perf_counter()

    def show(done: int, total: int, trial: object, run: Any) -> None:
        wall = (perf_counter() - started) / 60
        print(f"run {done:3d}/{total}  {run.rounds[-1].accuracy:.3f}  {wall:5.1f} min  {trial}", flush=True)

    return fedray.compare(
        configuration(given.rounds, given.threads, given.data),
        out=given.out,
        policies=list(POLICIES),
        seeds=given.seeds,
        show=show,
    )


def values_of(found: Comparison, policy: str, measure: str, group: str) -> list[tuple[float, bool]]:
    """By seed: the number, and whether the truth is more than it."""
    wanted = (policy, measure, group)
    rows = [row for row in found.rows if (row.policy, row.measure, row.group) == wanted]
    return [(row.value, row.censored) for row in rows if row.value is not None]


def ordered(found: Comparison) -> list[str]:
    """The best at equal virtual time comes last, which is on top; yardsticks have no cost to be equal in."""

    def at_equal_time(policy: str) -> list[float]:
        return [value for value, _ in values_of(found, policy, "accuracy at equal", "virtual time")]

    compared_at = [p for p in dict.fromkeys(row.policy for row in found.rows) if at_equal_time(p)]
    return sorted(compared_at, key=lambda policy: float(np.median(at_equal_time(policy))))


def dots(
    axes: Axes, found: Comparison, policies: Sequence[str], measure: str, group: str, unit: float
) -> None:
    """A point for every seed, hollow where a target was missed, and a bar at the median."""
    for place, policy in enumerate(policies):
        here = values_of(found, policy, measure, group)
        for value, censored in here:
            face = "none" if censored else "0.45"
            axes.plot(
                value / unit, place, "o", color="0.2", markerfacecolor=face, markersize=4, clip_on=False
            )
        if here:
            middle = float(np.median([value for value, _ in here])) / unit
            axes.plot([middle, middle], [place - 0.32, place + 0.32], color="black", linewidth=1.8)


def gains(axes: Axes, found: Comparison, policies: Sequence[str]) -> None:
    """Less everybody_smallest at equal virtual time, paired by seed, with the bootstrap's interval."""
    rows: list[Row] = list(found.rows)
    for place, policy in enumerate(policies):
        own = difference(rows, policy, "everybody_smallest", "accuracy at equal", "virtual time")
        if policy == "everybody_smallest" or own.mean is None:
            continue
        if own.low is not None and own.high is not None:
            axes.plot([own.low, own.high], [place, place], color="black", linewidth=1)
        axes.plot(own.mean, place, "s", color="black", markersize=4)
    axes.axvline(0, color="0.6", linewidth=0.8, linestyle="--")


def draw(found: Comparison, stem: Path) -> None:
    """Four panels, a policy a line: at equal time, what it gains by seed, at equal bytes, time to target."""
    policies = ordered(found)
    minutes: Callable[[float], str] = "{:.2f}".format
    labels = [f"{policy} ({KINDS.get(policy, 'baseline')})" for policy in policies]
    with mpl.rc_context({"font.size": 7.5, "axes.titlesize": 7.5, "pdf.fonttype": 42}):
        figure = Figure(figsize=(7.2, 0.6 + 0.21 * len(policies)), layout="constrained")
        panels = figure.subplots(1, 4, sharey=True)
        dots(panels[0], found, policies, "accuracy at equal", "virtual time", 1.0)
        panels[0].set(xlabel="accuracy (share)", title="(a) at equal virtual time")
        gains(panels[1], found, policies)
        panels[1].set(xlabel="accuracy, difference", title="(b) less smallest's")
        dots(panels[2], found, policies, "accuracy at equal", "bytes", 1.0)
        panels[2].set(xlabel="accuracy (share)", title="(c) at equal bytes")
        dots(panels[3], found, policies, "cost to target", "virtual time", 60.0)
        panels[3].set(xlabel="virtual time (min)", title=f"(d) to {minutes(found.targets[''])}, hollow: >")
        panels[0].set_yticks(range(len(policies)), labels)
        for axes in panels:
            axes.grid(axis="y", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        for suffix in ("pdf", "png"):
            figure.savefig(stem.with_suffix(f".{suffix}"), dpi=200)


def main() -> None:
    """Compare, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/shootout"))
    parser.add_argument("--seeds", type=int, default=5, help="how many; a seed is a run of each policy")
    parser.add_argument("--rounds", type=int, default=4, help="of each run")
    parser.add_argument("--threads", type=int, default=2, help="of each run; 1 on a machine that is busy")
    parser.add_argument("--data", type=Path, help="texts of your own in place of Python's docstrings")
    given = parser.parse_args()
    found = compared(given)
    print(found.to_text())
    draw(found, given.out / "shootout")
    print(f"{found.report}, {given.out / 'shootout.pdf'}")


if __name__ == "__main__":
    main()
