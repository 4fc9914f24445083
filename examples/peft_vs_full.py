"""LoRA, prompt tuning, BitFit and full fine-tuning across 5, 20 and 80 clients: what they learn and cost.

MiniLM learns which of 16 Python modules a docstring comes from; model, texts and phones are on this machine
already. Twelve runs, some 15 minutes on two cores::

    python examples/peft_vs_full.py runs/peft_vs_full

prints a table and leaves it as ``table.csv``, with ``picture.png`` and the folder of each run. Called again
it goes on where it was broken off. Every run asks five clients a round for four steps of eight rows, so
that the work is the same for any number of clients; with more clients each has fewer rows of its own.
Learning rates are rules of thumb, the same for every number of clients; none was tuned.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiment import Rows, close, options, ran, write

NUM_CLIENTS = (5, 20, 80)
# What is trained, the menu that offers it, and its learning rate.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "LoRA": ({"tunings": ["lora"], "ranks": [8]}, 3e-3),
    "prompt": ({"tunings": ["prompt"], "prompt_tokens": [20]}, 1e-2),
    "BitFit": ({"tunings": ["bitfit"]}, 3e-3),
    "full": ({"tunings": ["full"]}, 3e-4),
}
MIB = 1024**2


def configuration(kind: str, num_clients: int, num_rounds: int = 6, threads: int = 2) -> dict[str, Any]:
    """One run's."""
    menu, learning_rate = KINDS[kind]
    return {
        "model": "minilm",
        "task": "text_classification",
        "data": {
            "source": "docstrings",
            "partitioner": {"name": "dirichlet", "alpha": 0.5, "min_partition_size": 8},
            "num_clients": num_clients,
            "max_length": 32,
        },
        # A share at which full fine-tuning fits the smallest phone, so that all four have the same clients.
        "fleet": {"name": "phones", "memory_share": 0.6},
        "menu": {**menu, "per_device_train_batch_size": [8]},
        "training": {
            "learning_rate": learning_rate,
            "head_learning_rate": 2e-2,
            "lr_scheduler_type": "linear",
            "max_steps": 4,
        },
        "rounds": {"num_rounds": num_rounds, "clients_per_round": 5, "eval_rounds": num_rounds},
        "policy": "largest_that_fits",
        "aggregation": "coverage_mean",
        "packs": {"clients_per_pack": 5, "threads_per_pack": threads},
        "runtime": "local",
    }


def measured(kind: str, num_clients: int, out: Path) -> dict[str, Any]:
    """A row of the table, from the tables of a run."""
    rounds, clients = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("rounds", "clients"))
    done = [row for row in clients if row["outcome"] == "ok"]
    return {
        "kind": kind,
        "clients": num_clients,
        "accuracy": rounds[-1]["accuracy"],
        "loss": rounds[-1]["loss"],
        "up_kib": sum(row["up_bytes"] for row in done) / len(done) / 1024,
        "traffic_mib": sum(row["up_bytes"] + row["down_bytes"] for row in rounds) / MIB,
        "peak_mib": max(row["measured_peak_bytes"] or 0 for row in clients) / MIB,
        "virtual_minutes": sum(row["virtual_seconds"] for row in rounds) / 60,
        "kilojoules": sum(row["joules"] for row in rounds) / 1000,
        "updates": len(done),
    }


def show(rows: Rows) -> None:
    """The table, on the terminal."""
    print("clients  trained   accuracy    loss   up each   traffic    peak  virtual   energy")
    for row in rows:
        print(
            f"{row['clients']:7d}  {row['kind']:8s}  {row['accuracy']:8.3f}  {row['loss']:6.3f}  "
            f"{row['up_kib']:7.0f}K  {row['traffic_mib']:7.1f}M  {row['peak_mib']:5.0f}M  "
            f"{row['virtual_minutes']:4.1f}min  {row['kilojoules']:5.1f}kJ",
            flush=True,
        )


def draw(rows: Rows, file: Path) -> None:
    """Four measures over the number of clients, a line for what is trained."""
    axes = {
        "accuracy": "accuracy",
        "traffic_mib": "MiB sent",
        "peak_mib": "peak MiB",
        "virtual_minutes": "minutes",
    }
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 2.8), layout="constrained")
        for place, (column, label) in zip(figure.subplots(1, 4), axes.items(), strict=True):
            for kind in KINDS:
                own = [row for row in rows if row["kind"] == kind]
                place.plot(
                    [row["clients"] for row in own], [row[column] for row in own], marker="o", label=kind
                )
            place.set(
                xscale="log", xticks=NUM_CLIENTS, xticklabels=NUM_CLIENTS, xlabel="clients", title=label
            )
            place.minorticks_off()
            if column in ("traffic_mib", "peak_mib"):
                place.set_yscale("log")
        figure.legend(*place.get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
        figure.savefig(file, dpi=150)


def main() -> None:
    """All runs, one after the other; what is there already is read."""
    parser = options(__doc__, rounds=6)
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--clients", type=int, nargs="+", default=NUM_CLIENTS)
    given = parser.parse_args()
    rows = []
    for num_clients in given.clients:
        for kind in KINDS:
            config = configuration(kind, num_clients, given.rounds, given.threads)
            rows.append(measured(kind, num_clients, ran(given.out / f"{kind}_{num_clients}", config)))
            show(rows[-1:])
            write(rows, given.out, draw)
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
