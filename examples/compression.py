"""How much of a model can be left out? Blocks pruned x bits of a weight, against accuracy, bytes and memory.

Experiment 2 of the survey (2406.12844): for each way to make MiniLM smaller a federation trains LoRA on it,
the same clients, texts and draws each time. Ten minutes on two cores::

    python examples/compression.py runs/compression

prints a table and leaves it as ``table.csv``, with ``picture.png``, ``memory_knobs.png`` (what rank, depth,
recomputation and batch do to a client's peak bytes) and the folder of each run. Called again it goes on where
it was broken off.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import AutoModel, AutoTokenizer

from experiment import Rows, close, options, ran, write
from fedray.adapter import Adapter
from fedray.assignment import Assignment, WeightBits, lora_on_top
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.model.anatomy import dissect
from fedray.model.load import checkpoint_folder
from fedray.model.submodel import submodel
from fedray.report.reading import read_run
from fedray.scene import set_scene

MIB = 2**20
# Blocks kept: MiniLM's six, every second and third one left out.
KEPT = {6: (0, 1, 2, 3, 4, 5), 4: (0, 1, 3, 4), 3: (0, 2, 4), 2: (0, 3)}
BITS: tuple[WeightBits | None, ...] = (None, 8, 4)
CONFIG = {
    "data": {
        "source": "docstrings",
        "num_clients": 16,
        "max_rows_per_module": 80,
        "per_client": True,
        "max_length": 32,
    },
    "fleet": {"name": "edge", "memory_share": 0.5},
    "menu": {"ranks": [8], "per_device_train_batch_size": [8]},
    "training": {"learning_rate": 3e-3, "head_learning_rate": 2e-2},
    "packs": {"clients_per_pack": 8},
    "audit": {"share": 0.0},
    "runtime": "local",
}


def compressed(folder: Path, blocks: Sequence[int], bits: WeightBits | None) -> str:
    """MiniLM with these blocks alone, their linears rounded; an ordinary Hugging Face folder.

    Rounding a rounded weight changes nothing, so what clients train on, in few bits, and what is evaluated
    in fp32 are one model.
    """
    source = checkpoint_folder("minilm")
    whole = AutoModel.from_pretrained(source, add_pooling_layer=False)
    submodel(dissect(whole), Adapter(factors={}), blocks=blocks, bits=bits).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def trained(out: Path, blocks: Sequence[int], bits: WeightBits | None, num_rounds: int) -> dict[str, object]:
    """One federation on one model: what it came to."""
    name = f"{len(blocks)}_blocks_{bits or 32}_bits"
    model = compressed(out / "models" / name, blocks, bits)
    menu = {**CONFIG["menu"], "weight_bits": ["all" if bits is None else bits]}
    rounds = {"num_rounds": num_rounds, "clients_per_round": 8, "eval_rounds": num_rounds}
    run = read_run(ran(out / name, {**CONFIG, "model": model, "menu": menu, "rounds": rounds}))
    fine = [record for record in run.clients if record.outcome == "ok"]
    return {
        "blocks": len(blocks),
        "bits": bits or 32,
        "accuracy": run.rounds[-1].accuracy,
        "first_contact_mib": max(record.provision_bytes for record in fine) / MIB,
        "update_mib": fine[0].up_bytes / MIB,
        "peak_mib": max(record.predicted_peak_bytes for record in fine) / MIB,
        "virtual_seconds": sum(record.virtual_seconds for record in run.rounds),
    }


def knobs() -> Iterator[tuple[str, Sequence[str], list[float]]]:
    """Each knob alone, the others as they are: its values, and a client's peak bytes in MiB."""
    scene = set_scene(load_config({**CONFIG, "model": "minilm"}), None)
    targets = scene.menu[0].adapter.targets  # type: ignore[union-attr]

    def peak(rank: int = 8, depth: int = 6, batch: int = 8, *, recompute: bool = False) -> float:
        lora = lora_on_top(6, depth, rank, targets=targets)
        own = Assignment(blocks=tuple(range(6)), adapter=lora, recompute=recompute, batch_size=batch)
        shape = WorkShape(rows=batch, tokens=32, attention="memory_efficient")
        return scene.footprint(own, shape).peak_bytes / MIB

    ranks, depths, batches = (1, 2, 4, 8, 16, 32), (1, 2, 3, 4, 5, 6), (1, 2, 4, 8, 16, 32)
    yield "rank", [str(rank) for rank in ranks], [peak(rank=rank) for rank in ranks]
    yield "trained blocks", [str(depth) for depth in depths], [peak(depth=depth) for depth in depths]
    yield "batch", [str(batch) for batch in batches], [peak(batch=batch) for batch in batches]
    yield "recomputation", ["on", "off"], [peak(recompute=True), peak()]


def draw_frontier(rows: Rows, path: Path) -> None:
    """Accuracy against what a device must receive once, a line for each number of bits."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for bits, marker in zip((32, 8, 4), "os^", strict=True):
        own = [row for row in rows if row["bits"] == bits]
        axes.plot(
            [row["first_contact_mib"] for row in own],
            [row["accuracy"] for row in own],
            marker=marker,
            color="black",
            linestyle={32: "-", 8: "--", 4: ":"}[bits],
            label=f"{bits} bits",
        )
        for row in own:
            axes.annotate(
                f"{row['blocks']}",
                (row["first_contact_mib"], row["accuracy"]),
                (4, 4),
                textcoords="offset points",
            )
    axes.set(xlabel="frozen weights that reach a device (MiB)", ylabel="accuracy in the end")
    axes.set_title("Numbers are blocks kept of six", fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_knobs(path: Path) -> None:
    """Peak bytes of a client's step against each knob."""
    found = list(knobs())
    figure, panels = plt.subplots(1, len(found), figsize=(9, 2.8), sharey=True, layout="constrained")
    for axes, (name, values, peaks) in zip(panels, found, strict=True):
        axes.bar(values, peaks, color="0.6", edgecolor="black")
        axes.set(xlabel=name)
        print(f"{name}: " + ", ".join(f"{v} {p:.1f} MiB" for v, p in zip(values, peaks, strict=True)))
    panels[0].set(ylabel="peak bytes of a client's step (MiB)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(rows: Rows) -> None:
    """The table, on the terminal."""
    print("blocks  bits  accuracy  at first  update    peak    virtual")
    for row in rows:
        print(
            f"{row['blocks']:6d}  {row['bits']:4d}  {row['accuracy']:8.3f}  "
            f"{row['first_contact_mib']:6.1f}M  {row['update_mib']:5.2f}M  {row['peak_mib']:5.0f}M  "
            f"{row['virtual_seconds']:8.0f}s",
            flush=True,
        )


def main() -> None:
    """Every federation, the table and the figures; what is there already is read."""
    given = options(__doc__, rounds=6).parse_args()
    rows = []
    for blocks in KEPT.values():
        for bits in BITS:
            rows.append(trained(given.out, blocks, bits, given.rounds))
            show(rows[-1:])
            write(rows, given.out, draw_frontier)
    print()
    draw_knobs(given.out / "memory_knobs.png")
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
