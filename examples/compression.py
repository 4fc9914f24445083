"""How much of a model can be left out? Blocks pruned x bits of a weight, against accuracy, bytes and memory.

Experiment 2 of the survey (2406.12844): for each way to make MiniLM smaller a federation trains LoRA on it,
the same clients, texts and draws each time. Leaves a table, ``compression.csv`` and ``compression.pdf``, with
a second figure, ``memory_knobs.pdf``: what rank, depth, recomputation and batch do to a client's peak bytes.

    python examples/compression.py runs/compression

Ten minutes on two cores. Run it again to go on where it was broken off.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from torch import nn
from transformers import AutoModel, AutoTokenizer

import fedray
from fedray.assignment import Assignment, WeightBits, lora_on_top
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.model.anatomy import dissect
from fedray.model.load import checkpoint_folder
from fedray.model.quantized import dequantise, quantise
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
    "rounds": {"num_rounds": 6, "clients_per_round": 8, "eval_rounds": 6},
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
    model = AutoModel.from_pretrained(source, add_pooling_layer=False)
    layers = model.get_submodule("encoder.layer")
    model.encoder.layer = nn.ModuleList([layers[block] for block in blocks])
    model.config.num_hidden_layers = len(blocks)
    if bits is not None:
        anatomy = dissect(model)
        for block in range(anatomy.num_blocks):
            for linear in anatomy.linears(block).values():
                weight = linear.get_parameter("weight")
                weight.data = dequantise(*quantise(weight.data, bits), weight.shape[1], weight.dtype)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def trained(out: Path, blocks: Sequence[int], bits: WeightBits | None) -> dict[str, object]:
    """One federation on one model: what it came to."""
    name = f"{len(blocks)}_blocks_{bits or 32}_bits"
    folder = out / name
    if not (folder / "report.html").is_file():
        model = compressed(out / "models" / name, blocks, bits)
        menu = {**CONFIG["menu"], "weight_bits": ["all" if bits is None else bits]}
        if folder.exists():
            fedray.resume(folder)
        else:
            fedray.run({**CONFIG, "model": model, "menu": menu}, out=folder)
    run = read_run(folder)
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


def draw_frontier(rows: Sequence[dict[str, object]], path: Path) -> None:
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
    axes.set(xlabel="frozen weights that reach a device (MiB)", ylabel="accuracy after six rounds")
    axes.set_title("Numbers are blocks kept of six", fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(path)
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
    figure.savefig(path)
    plt.close(figure)


def main(out: Path) -> None:
    """Every federation, the table and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for blocks in KEPT.values():
        for bits in BITS:
            rows.append(trained(out, blocks, bits))
            print(
                "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
            )
            sys.stdout.flush()
    with (out / "compression.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw_frontier(rows, out / "compression.pdf")
    draw_knobs(out / "memory_knobs.pdf")
    print(f"Figures: {out / 'compression.pdf'}, {out / 'memory_knobs.pdf'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compression"))
