"""What differential privacy costs in accuracy: noise on sums of updates, or on hidden states at a cut.

MiniLM learns which of 16 Python modules a docstring comes from, with 64 clients of which each is drawn for
itself, 16 a round on average. Ten runs, some ten minutes on two cores::

    python examples/accuracy_and_epsilon.py runs/epsilon
    python examples/accuracy_and_epsilon.py runs/epsilon_at_a_cut --where cut

The first is central noise, on a head alone and on FFA-LoRA, and its epsilon is that of a client. The second
is noise on what crosses a cut at block 2, with LoRA of rank 4 above it and nothing trained below, and its
epsilon is that of one row of a client over all its tokens and steps: much noise, for less of it. Either
prints a table and leaves it as ``table.csv``, with ``picture.png`` and the folder of each run. Called again
it goes on where it was broken off. Noise multipliers are the axis, epsilon is what they come to over the
rounds; learning rates and the norm were not tuned. Few clients make little privacy: with a thousand times as
many a round the same noise would be a thousand times smaller in the mean, and epsilon smaller, too.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiment import Rows, close, options, ran, write

NOISE = {"central": (0.0, 0.3, 0.6, 1.0, 2.0), "cut": (0.0, 0.03, 0.1, 0.3, 1.0, 10.0)}
AT_A_CUT = "LoRA over a cut"
# What is trained: the menu that offers it, and the rule whose sum one client moves by a known length.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "head alone": (
        {"ranks": [], "head_only": True},
        {"name": "factor_mean", "options": {"mode": "zero_pad"}, "weights": "uniform"},
    ),
    "FFA-LoRA": ({"ranks": [4], "depths": [2]}, {"name": "ffa_lora", "weights": "uniform"}),
    AT_A_CUT: ({"ranks": [4], "depths": [2], "cuts": [2], "whole": False}, {"name": "factor_mean"}),
}


def configuration(kind: str, noise: float, num_rounds: int = 10, threads: int = 2) -> dict[str, Any]:
    """One run's."""
    menu, aggregation = KINDS[kind]
    central = {"where": "central", "clip_norm": 2.0, "noise_multiplier": noise}
    at_cut = {"cut_clip_norm": 8.0, "cut_noise_multiplier": noise}
    return {
        "model": "minilm",
        "data": {
            "source": "docstrings",
            "partitioner": {"name": "dirichlet", "alpha": 1.0, "min_partition_size": 8},
            "num_clients": 64,
            "max_length": 32,
        },
        "fleet": {"name": "phones", "memory_share": 0.6},
        "menu": {**menu, "per_device_train_batch_size": [8]},
        "training": {"learning_rate": 3e-3, "head_learning_rate": 2e-2, "max_steps": 3},
        "rounds": {"num_rounds": num_rounds, "clients_per_round": 16, "eval_rounds": num_rounds},
        "selection": "poisson",
        "aggregation": aggregation,
        "privacy": at_cut if kind == AT_A_CUT else central,
        "packs": {"clients_per_pack": 8, "threads_per_pack": threads},
        "audit": {"share": 0.0},
        "runtime": "local",
    }


def measured(kind: str, noise: float, out: Path) -> dict[str, Any]:
    """A row of the table, from the tables of a run."""
    last = pq.read_table(out / "rounds.parquet").to_pylist()[-1]
    epsilon = last["cut_epsilon" if kind == AT_A_CUT else "epsilon"]
    facts = {"epsilon": epsilon, "accuracy": last["accuracy"], "loss": last["loss"]}
    return {"kind": kind, "noise_multiplier": noise, **facts}


def show(rows: Rows) -> None:
    """The table, on the terminal."""
    print("trained          noise    epsilon  accuracy    loss")
    for row in rows:
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        print(
            f"{row['kind']:15s}  {row['noise_multiplier']:5.2f}  {epsilon:>9s}  {row['accuracy']:8.3f}  "
            f"{row['loss']:6.3f}",
            flush=True,
        )


def draw(rows: Rows, file: Path) -> None:
    """Accuracy over epsilon; a dashed line is what cutting alone comes to."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
            own = [row for row in rows if row["kind"] == kind]
            noisy = [row for row in own if row["epsilon"] is not None]
            axes.plot(
                [row["epsilon"] for row in noisy], [row["accuracy"] for row in noisy], marker="o", label=kind
            )
            for row in own:
                if row["epsilon"] is None:
                    axes.axhline(row["accuracy"], color=f"C{number}", linestyle="--", linewidth=1)
        if any(row["epsilon"] is not None for row in rows):
            axes.set_xscale("log")
            axes.legend()
        axes.set(xlabel="epsilon at delta 1e-5", ylabel="accuracy")
        figure.savefig(file, dpi=150)


def main() -> None:
    """All runs, one after the other; what is there already is read."""
    parser = options(__doc__, rounds=10)
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--noise", type=float, nargs="+", help="noise multipliers")
    parser.add_argument("--where", choices=tuple(NOISE), default="central", help="on sums, or at a cut")
    given = parser.parse_args()
    rows = []
    for kind in [kind for kind in KINDS if (kind == AT_A_CUT) == (given.where == "cut")]:
        for noise in given.noise or NOISE[given.where]:
            config = configuration(kind, noise, given.rounds, given.threads)
            place = given.out / f"{kind.replace(' ', '_')}_{noise:g}"
            rows.append(measured(kind, noise, ran(place, config)))
            show(rows[-1:])
            write(rows, given.out, draw)
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
