"""What a cut gives away: the share of a text's words that whoever hears its hidden states can tell.

MiniLM and the docstrings of Python, both on this machine already. For every cut an attacker with rows of its
own fits a linear decoder to word embeddings; what it then finds in other rows is the lower bound that
`fedray.attacks.inversion` speaks of. Some minutes on one core::

    python examples/leakage.py runs/leakage

prints a table and leaves it as ``table.csv``, with ``picture.png``. The first row must succeed at cut 0, for
there hidden states are the embeddings; the row that is drowned in noise must find no more than the commonest
word.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import AutoModel

from fedray.attacks.inversion import Sent, commonest, token_recovery
from fedray.config import load_config
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import load_backbone
from fedray.scene import set_scene

# How hidden states are sent, and how many rows of its own the attacker has.
WAYS: dict[str, tuple[Sent, int]] = {
    "as they are": (Sent(), 256),
    "as they are, 32 known rows": (Sent(), 32),
    "int8": (Sent(codec="int8"), 256),
    "int4": (Sent(codec="int4"), 256),
    "top10": (Sent(codec="top10"), 256),
    "noise 0.5": (Sent(noise=0.5), 256),
    "noise 1": (Sent(noise=1.0), 256),
    "noise 2": (Sent(noise=2.0), 256),
    "drowned: noise 1000": (Sent(noise=1000.0), 256),
}
RANDOM = "as they are, random weights"
NUM_PRIVATE = 100


def models() -> dict[str, Anatomy]:
    """MiniLM, and the same with weights drawn anew."""
    pretrained = load_backbone("minilm", "classification", "fp32")[0]
    torch.manual_seed(0)
    drawn = AutoModel.from_config(pretrained.config, add_pooling_layer=False).requires_grad_(False)
    return {"pretrained": dissect(pretrained), "random": dissect(drawn)}


def show(name: str, found: dict[int, float]) -> None:
    """A row of the table, on the terminal."""
    print(f"{name:28s} " + "  ".join(f"{share:5.3f}" for share in found.values()), flush=True)


def draw(rows: Sequence[dict[str, Any]], floor: float, file: Path) -> None:
    """The share that is found over the cut, a line for each way."""
    styles = ["-", "--", "-.", ":"]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        place = figure.subplots()
        for number, row in enumerate(rows):
            cuts = [key for key in row if isinstance(key, int)]
            place.plot(
                cuts,
                [row[cut] for cut in cuts],
                linestyle=styles[number % 4],
                marker="os^vDx+*P<"[number % 10],
                color=str(0.12 * (number % 5)),
                markersize=4,
                linewidth=1,
                label=row["sent"],
            )
        place.axhline(floor, color="0.6", linewidth=0.8)
        place.set(xlabel="cut (blocks that the client keeps)", ylabel="share of words found", ylim=(0, 1.03))
        figure.legend(loc="outside right center", fontsize=7)
        figure.savefig(file, dpi=150)


def main() -> None:
    """Every way, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the table and the picture")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    scene = set_scene(load_config({"data": {"max_length": 48}, "runtime": "local"}), None)
    order = np.random.default_rng(0).permutation(len(scene.encoded.lengths))
    private, known = order[:NUM_PRIVATE], order[NUM_PRIVATE:]
    floor = commonest(scene.encoded, known[:256], private)
    print(f"always the commonest word: {floor:.3f}\nsent                         cut 0      1      2 ...")
    of, rows = models(), []
    for name, (sent, count) in {**WAYS, RANDOM: (Sent(), 256)}.items():
        anatomy = of["random" if name == RANDOM else "pretrained"]
        found = token_recovery(anatomy, scene.encoded, known[:count], private, sent)
        show(name, found)
        rows.append({"sent": name, **found})
        with (given.out / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, floor, given.out / "picture.png")


if __name__ == "__main__":
    main()
