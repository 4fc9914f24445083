"""What central differential privacy costs in accuracy: a head alone and FFA-LoRA, under more and more noise.

MiniLM learns which of 16 Python modules a docstring comes from, with 64 clients of which each is drawn for
itself, 16 a round on average. Ten runs, some ten minutes on two cores::

    python examples/accuracy_and_epsilon.py runs/epsilon

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

NOISE = (0.0, 0.3, 0.6, 1.0, 2.0)
# What is trained: the menu that offers it, and the rule whose sum one client moves by a known length.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "head alone": (
        {"ranks": [], "head_only": True},
        {"name": "factor_mean", "options": {"mode": "zero_pad"}, "weights": "uniform"},
    ),
    "FFA-LoRA": ({"ranks": [4], "depths": [2]}, {"name": "ffa_lora", "weights": "uniform"}),
}


def configuration(kind: str, noise: float, num_rounds: int = 10, threads: int = 2) -> dict[str, Any]:
    """One run's."""
    menu, aggregation = KINDS[kind]
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
        "privacy": {"where": "central", "clip_norm": 2.0, "noise_multiplier": noise},
        "packs": {"clients_per_pack": 8, "threads_per_pack": threads},
        "audit": {"share": 0.0},
        "runtime": "local",
    }


def measured(kind: str, noise: float, out: Path) -> dict[str, Any]:
    """A row of the table, from the tables of a run."""
    last = pq.read_table(out / "rounds.parquet").to_pylist()[-1]
    facts = {name: last[name] for name in ("epsilon", "accuracy", "loss")}
    return {"kind": kind, "noise_multiplier": noise, **facts}


def show(rows: Rows) -> None:
    """The table, on the terminal."""
    print("trained     noise    epsilon  accuracy    loss")
    for row in rows:
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        print(
            f"{row['kind']:10s}  {row['noise_multiplier']:5.2f}  {epsilon:>9s}  {row['accuracy']:8.3f}  "
            f"{row['loss']:6.3f}",
            flush=True,
        )


def draw(rows: Rows, file: Path) -> None:
    """Accuracy over epsilon; a dashed line is what cutting alone comes to."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(KINDS):
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
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE, help="noise multipliers")
    given = parser.parse_args()
    rows = []
    for kind in KINDS:
        for noise in given.noise:
            config = configuration(kind, noise, given.rounds, given.threads)
            place = given.out / f"{kind.replace(' ', '_')}_{noise:g}"
            rows.append(measured(kind, noise, ran(place, config)))
            show(rows[-1:])
            write(rows, given.out, draw)
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
