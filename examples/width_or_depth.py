"""Narrower or shallower? HeteroFL and DepthFL beside everybody training the smallest model alone.

A small transformer learns from nothing which of 16 Python modules a docstring comes from, on ten devices:
three can train all of it, three half, and four a quarter of its width or one of its four blocks. Texts and
words are on this machine already. Eight runs for each seed, some minutes a seed on one core::

    python examples/width_or_depth.py runs/width_or_depth

prints a table and leaves it as ``table.csv``, with ``picture.png`` and the folder of each run. Called again
it goes on where it was broken off. DepthFL's authors report that HeteroFL's global model is worse than the
smallest model trained by everybody, and that theirs is better (ICLR 2023); here is what this one says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import fedray
from experiment import Rows, close, options, ran, write
from fedray.training.corpus import docstrings

BLOCKS, WIDTH, WORDS = 4, 64, 2000
WIDTHS = {"widths": [0.25, 0.5, 1.0], "width_axes": ["hidden", "head_dim", "ffn"]}
EXITS = {"exits": [1, 2]}
# How many of the ten devices can hold the smallest, the middle and the whole.
DEVICES = (4, 3, 3)
# The model, what is on the menu, and who gives it: all devices have room in the first three.
METHODS: dict[str, dict[str, Any]] = {
    "all train the whole": {"room": "whole"},
    "all train a quarter of the width": {"model": "narrow", "room": "whole"},
    "all train one block": {"model": "shallow", "room": "whole"},
    "the strong alone": {"clients": "strong"},
    "HeteroFL": {"policy": "heterofl", "menu": WIDTHS},
    "FedRolex": {"policy": "fedrolex", "menu": WIDTHS},
    "depths, no distillation": {
        "policy": "depthfl",
        "menu": EXITS,
        "training": {"exit_distillation": 0.0},
    },
    "DepthFL": {
        "policy": "depthfl",
        "menu": EXITS,
        "training": {"exit_ramp_rounds": 20},
    },
}


def save_models(out: Path) -> None:
    """Three random models: the whole, a quarter of its width, one block; with words of the docstrings."""
    texts = [str(row["text"]) for row in docstrings()]
    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.train_from_iterator(
        texts, WordLevelTrainer(vocab_size=WORDS, special_tokens=["<pad>", "<unk>"])
    )
    for name, width, blocks in (
        ("whole", WIDTH, BLOCKS),
        ("narrow", WIDTH // 4, BLOCKS),
        ("shallow", WIDTH, 1),
    ):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(out / name)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
        fast.save_pretrained(out / name)


def save_fleets(out: Path) -> None:
    """Devices that can hold what they are meant to, of widths and of depths, and not the next larger."""
    rich = save_fleet(out / "whole.csv", [10**9] * sum(DEVICES))
    peaks = []
    for menu in (WIDTHS, EXITS):
        peaks.append([_peak(out, rich, menu, place) for place in range(len(DEVICES))])
    rooms = [int(1.03 * max(column)) for column in zip(*peaks, strict=True)]
    memory = [room for room, count in zip(rooms, DEVICES, strict=True) for _ in range(count)]
    save_fleet(out / "unlike.csv", memory)


def _peak(out: Path, fleet: str, menu: dict[str, Any], place: int) -> int:
    """What the entry at a place of a menu, small to large, takes on a device with room for everything."""

    def assign(cohort: Any, offers: Any) -> Any:
        sizes = [(entry.cut, entry.width.share if entry.width else 1.0) for entry in offers.menu]
        return np.full(len(cohort), sorted(range(len(sizes)), key=sizes.__getitem__)[place])

    planned = fedray.plan(configuration(out, {"menu": menu}, 0, 1) | {"fleet": fleet}, policy=assign)
    return max(client.peak_bytes or 0 for client in planned.clients)


def save_fleet(file: Path, memory_bytes: Sequence[int]) -> str:
    """A table of devices that differ in memory alone."""
    columns = "device_class,memory_bytes,flops_per_s_fp32,up_bps,down_bps,rtt_seconds"
    named = {size: f"{size / 1e6:.1f} MB" for size in memory_bytes}
    lines = [f"{named[size]},{size},1e10,1e7,1e7,0.05" for size in memory_bytes]
    file.write_text("\n".join([columns, *lines]) + "\n")
    return str(file)


def configuration(out: Path, method: dict[str, Any], seed: int, num_rounds: int) -> dict[str, Any]:
    """One run's."""
    num_clients = sum(DEVICES)
    return {
        "model": str(out / method.get("model", "whole")),
        "task": "text_classification",
        "data": {
            "source": "docstrings",
            "partitioner": {"name": "dirichlet", "alpha": 1.0, "min_partition_size": 16},
            "num_clients": num_clients,
            "max_length": 32,
        },
        "fleet": str(out / ("whole.csv" if method.get("room") == "whole" else "unlike.csv")),
        "menu": {
            "tunings": ["full"],
            "ranks": [],
            "per_device_train_batch_size": [16],
            **method.get("menu", {}),
        },
        "training": {"learning_rate": 2e-3, "num_train_epochs": 2, **method.get("training", {})},
        "rounds": {"num_rounds": num_rounds, "clients_per_round": num_clients, "eval_rounds": 4},
        "policy": method.get("policy", "largest_that_fits"),
        "aggregation": "coverage_mean",
        "provision": "preinstalled",
        "runtime": "local",
        "audit": {"share": 0.0},
        "seed": seed,
    }


def measured(method: str, seed: int, out: Path) -> dict[str, Any]:
    """A row of the table, from the tables of a run."""
    rounds, clients = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("rounds", "clients"))
    found = [row["accuracy"] for row in rounds if row["accuracy"] is not None]
    return {
        "method": method,
        "seed": seed,
        "accuracy": found[-1],
        "best": max(found),
        "took_part": len({row["client_id"] for row in clients if row["outcome"] == "ok"}),
        "sent_mib": sum(row["up_bytes"] + row["down_bytes"] for row in rounds) / 2**20,
        "virtual_minutes": sum(row["virtual_seconds"] for row in rounds) / 60,
    }


def show(rows: Rows) -> None:
    """The table, on the terminal: medians over seeds."""
    print("                                   accuracy  (lowest, highest)  took part     sent    virtual")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        found = sorted(row["accuracy"] for row in own)
        print(
            f"{method:34s} {np.median(found):9.3f}  ({found[0]:.3f}, {found[-1]:.3f})      "
            f"{own[0]['took_part']:3d} of 10  {own[0]['sent_mib']:6.0f}M  "
            f"{own[0]['virtual_minutes']:6.1f}min",
            flush=True,
        )


def draw(rows: Rows, file: Path) -> None:
    """Accuracy in the end, a dot for each seed and a line at the median."""
    methods = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 3), layout="constrained")
        place = figure.subplots()
        for height, method in enumerate(methods):
            found = [row["accuracy"] for row in rows if row["method"] == method]
            place.plot(found, [height] * len(found), "o", color="black", markersize=4)
            place.plot([np.median(found)] * 2, [height - 0.3, height + 0.3], color="black")
        place.set(
            yticks=range(len(methods)),
            yticklabels=methods,
            xlabel="accuracy of the global model (a dot a seed, a line at their median)",
        )
        place.grid(axis="x", linewidth=0.3)
        figure.savefig(file, dpi=150)


def main() -> None:
    """All runs, one after the other; what is there already is read."""
    parser = options(__doc__, rounds=12)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    save_models(given.out)
    save_fleets(given.out)
    rows = []
    for seed in range(given.seeds):
        for name, method in METHODS.items():
            folder = given.out / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            done = ran(folder, configuration(given.out, method, seed, given.rounds))
            rows.append(measured(name, seed, done))
            print(f"seed {seed}, {name}: {rows[-1]['accuracy']:.3f}", flush=True)
            write(rows, given.out, draw)
    close(rows, given.out, show)


if __name__ == "__main__":
    main()
