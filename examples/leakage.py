"""What cuts, updates and models give away: words, images and who was a member, in one table and one figure.

MiniLM and the docstrings of Python for texts, a small ViT with random weights and the letters of matplotlib's
fonts for images, all on this machine already. Some twenty minutes on two cores::

    python examples/leakage.py runs/leakage
    python examples/leakage.py runs/leakage --images PATH --vit PATH    # your own images, a trained ViT
    python examples/leakage.py runs/leakage --model FOLDER    # words at the cuts of a decoder alone

prints the table, a measurement a row, and leaves it as ``table.csv``, with ``picture.png``:

- activation inversion, over cut, codec, noise and how many rows the attacker has: the share of words that are
  found (always saying the commonest is the floor), and PSNR of images (the mean image is the floor);
- the same by search through the blocks below a cut, which the attacker knows but for the client's adapter;
- inversion of one update over rank and batch, of SGD and of AdamW, int8 and noise: the share of words;
- a search for the image of an update over rank, as PSNR;
- membership over rank, by the loss and by likelihood ratio: AUC, and members named at one false in a hundred.

At cut 0 of what is sent as it is, and for one row at a rank with room for its tokens, an attack must succeed.
With random weights it must fail: decoders learnt on weights drawn anew, membership in a model before any
training; and so it must drowned in noise, and of an update before LoRA's B has moved.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from experiment import write
from fedray.adapter import Adapter, applied
from fedray.assignment import Assignment, lora_on_top
from fedray.attacks.inversion import Sent, commonest, token_recovery
from fedray.attacks.matching import gradients_of_images, matched
from fedray.attacks.membership import by_loss
from fedray.attacks.pictures import image_recovery, mean_image, psnr
from fedray.attacks.searched import searched_recovery
from fedray.attacks.shadows import by_ratio, trained_shadows
from fedray.attacks.updates import span_recovery
from fedray.config import load_config
from fedray.mechanism import Mechanism
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import load_backbone
from fedray.scene import Scene, furnish, set_scene
from fedray.training.data import Rows
from fedray.training.job import Job, lone_job
from fedray.training.link import as_received, on_its_way
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import Backbone
from fedray.training.shapes import initial_adapter
from fedray.training.train import Workshop, train_pack
from fedray.training.workshop import open_workshop

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
# Rows where weights are drawn anew: the attacker's alone, or those of both.
STRANGER, RANDOM = "attacker's weights random", "both sides' weights random"
NUM_PRIVATE = 100
# A search takes minutes a cut, so it looks for fewer rows: hidden states as they are sent, by name.
SEARCHED = {"as they are": Sent(), "int4": Sent(codec="int4"), "noise 1": Sent(noise=1.0)}
UNKNOWN = "as they are, adapter unknown"
NUM_SEARCHED = 12
SGD = LocalOptimizer(optim="sgd", learning_rate=1.0, max_grad_norm=None)
ADAMW = LocalOptimizer(optim="adamw", learning_rate=1e-3, max_grad_norm=None)
# How an update comes about and is sent: rank, rows of its batch, and what else.
FRESH = "sgd, B still zero"
STEPS: dict[str, tuple[LocalOptimizer, dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "adamw": (ADAMW, {}),
    "sgd, int8": (SGD, {"up_codec": "int8"}),
    "sgd, local noise 0.001": (SGD, {"noise": 0.001}),
    FRESH: (SGD, {}),
}
RANKS, BATCHES = (4, 16, 64), (1, 4)
MEMBERS, EPOCHS, SHADOWS = 48, 10, 6

Row = dict[str, Any]


def texts(model: str | None = None) -> Scene:
    """Docstrings for MiniLM, or for a decoder."""
    task = {"model": model, "task": "causal_lm"} if model else {}
    return set_scene(load_config({**task, "data": {"max_length": 48}, "runtime": "local"}), None)


def pictures(images: str, vit: str, shape: Sequence[int] | None = None) -> Scene:
    """A ViT and images, at most two thousand; ``shape`` is that of raw pixels."""
    data = {"source": images, "partitioner": "iid", "num_clients": 8, "max_rows": 2000}
    task = {"name": "image_classification", "options": {"image_shape": list(shape)} if shape else {}}
    return set_scene(load_config({"model": vit, "task": task, "data": data, "runtime": "local"}), None)


def small_vit(folder: Path) -> str:
    """Four blocks of random weights for images of 28 x 28, as a folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    ViTModel(
        ViTConfig(**sizes, image_size=28, patch_size=4, num_channels=1, initializer_range=0.1)
    ).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return str(folder)


def at_cuts(scene: Scene, *, images: bool) -> Iterator[Row]:
    """Activation inversion at every cut, every way."""
    order = np.random.default_rng(0).permutation(len(scene.encoded))
    private, known = order[:NUM_PRIVATE], order[NUM_PRIVATE:]
    attack, floor_of = (image_recovery, mean_image) if images else (token_recovery, commonest)
    floor = floor_of(scene.encoded, known[:256], private)
    pretrained = load_backbone(scene.config.model.name, scene.task.head, "fp32")[0]
    ours, drawn = dissect(pretrained), dissect(drawn_anew(pretrained, scene))
    sides: dict[str, tuple[Anatomy, Anatomy]] = {STRANGER: (ours, drawn), RANDOM: (drawn, drawn)}
    for name, (sent, count) in {**WAYS, STRANGER: (Sent(), 256), RANDOM: (Sent(), 256)}.items():
        clients, attackers = sides.get(name, (ours, ours))
        found = attack(clients, scene.encoded, known[:count], private, sent, attackers)
        for cut, value in found.items():
            yield {
                "attack": "images at a cut" if images else "words at a cut",
                "sent": name,
                "cut": cut,
                "measure": "PSNR in dB" if images else "share of words",
                "value": value,
                "floor": floor,
            }


def drawn_anew(pretrained: PreTrainedModel, scene: Scene) -> PreTrainedModel:
    """The same model with random weights, others than those of `small_vit`."""
    torch.manual_seed(1)
    if scene.task.head == "causal_lm":
        drawn: PreTrainedModel = AutoModelForCausalLM.from_config(pretrained.config)
    else:
        drawn = AutoModel.from_config(pretrained.config, add_pooling_layer=False)
    return drawn.requires_grad_(False)


def by_search(scene: Scene, workshop: Workshop) -> Iterator[Row]:
    """Words that a search finds at the lowest, the middle and the highest cut, beside the decoder's."""
    anatomy = workshop.evaluated.anatomy
    order = np.random.default_rng(0).permutation(len(scene.encoded))
    rows = anatomy, scene.encoded, order[NUM_PRIVATE:][:256], order[:NUM_SEARCHED]
    cuts = (0, anatomy.num_blocks // 2, anatomy.num_blocks)
    floor = commonest(scene.encoded, *rows[2:])
    for name, sent in {**SEARCHED, UNKNOWN: Sent(adapter=trained_on(workshop, scene, rows[3]))}.items():
        decoded = token_recovery(*rows, sent)
        searched = searched_recovery(*rows, sent, cuts)
        for attack, found in (("words by search", searched), ("words by decoder", decoded)):
            for cut in cuts:
                yield {
                    "attack": attack,
                    "sent": name,
                    "cut": cut,
                    "measure": "share of words",
                    "value": found[cut],
                    "floor": floor,
                }


def trained_on(workshop: Workshop, scene: Scene, rows: Rows) -> Adapter:
    """LoRA of rank 8 on all blocks after ten epochs on a client's rows."""
    blocks = workshop.evaluated.anatomy.num_blocks
    lora = lora_on_top(blocks, blocks, 8, targets=tuple(workshop.evaluated.anatomy.family.targets))
    given = Assignment(blocks=tuple(range(blocks)), adapter=lora, batch_size=4, num_epochs=10)
    sent = initial_adapter(workshop.evaluated.anatomy, [given], scene.num_labels, 0)
    optimizer = LocalOptimizer(learning_rate=3e-3)
    own = replace(workshop, partitions=(rows,), optimizer=optimizer)
    (update,) = train_pack(own, [lone_job(given, sent, num_rows=len(rows), tokens=scene.max_length)])
    assert update.delta is not None
    return applied(sent, update.delta)


def of_image_updates(scene: Scene) -> Iterator[Row]:
    """A search for the one image of a batch from the gradients of LoRA on all blocks, two images each."""
    model = load_backbone(scene.config.model.name, scene.task.head, "fp32")[0]
    backbone = Backbone.of(dissect(model), [("q_proj", "v_proj")])
    blocks = backbone.anatomy.num_blocks
    order = np.random.default_rng(0).permutation(len(scene.encoded))
    for rank in RANKS:
        given = Assignment(
            blocks=tuple(range(blocks)),
            adapter=lora_on_top(blocks, blocks, rank, targets=("q_proj", "v_proj")),
            batch_size=1,
        )
        sent = moved(initial_adapter(backbone.anatomy, [given], scene.num_labels, 0))
        values = []
        for row in order[:2]:
            batch = scene.encoded.batch(np.array([row]), scene.max_length)
            gradients_of = gradients_of_images(backbone, scene.task, given, sent, batch)
            true = batch["pixel_values"]
            seen = [gradient.detach() for gradient in gradients_of(true)]
            spread = float(true.max() - true.min())
            noise = torch.rand(true.shape, generator=torch.Generator().manual_seed(int(row)))
            start = float(true.min()) + spread * noise
            values.append(psnr(matched(gradients_of, seen, start, smoothness=0.1), true, spread))
        yield {
            "attack": "image of an update",
            "sent": "sgd",
            "rank": rank,
            "batch": 1,
            "measure": "PSNR in dB",
            "value": float(np.mean(values)),
            "floor": mean_image(scene.encoded, order[NUM_PRIVATE:], order[:2]),
        }


def moved(adapter: Adapter, deviation: float = 0.02) -> Adapter:
    """The adapter with a B as after some rounds: at the start it is zero, and A has no gradient."""
    random = torch.Generator().manual_seed(0)
    factors = {
        site: replace(f, b=deviation * torch.randn(f.b.shape, generator=random))
        for site, f in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


def of_updates(scene: Scene, workshop: Workshop) -> Iterator[Row]:
    """Words out of single updates of LoRA on all blocks, two batches each."""
    anatomy = workshop.evaluated.anatomy
    order = np.random.default_rng(1).permutation(len(scene.encoded))
    for name, (optimizer, options) in STEPS.items():
        for rank in RANKS if name == "sgd" else RANKS[-1:]:
            for batch in BATCHES if name in ("sgd", "adamw") else BATCHES[:1]:
                lora = lora_on_top(anatomy.num_blocks, anatomy.num_blocks, rank, targets=("query", "value"))
                given = Assignment(
                    blocks=tuple(range(anatomy.num_blocks)),
                    adapter=lora,
                    batch_size=batch,
                    max_steps=1,
                    up_codec=options.get("up_codec", "none"),
                )
                start = initial_adapter(anatomy, [given], scene.num_labels, 0)
                sent = start if name == FRESH else moved(start)
                job = lone_job(given, sent, num_rows=batch, tokens=scene.max_length)
                if noise := options.get("noise"):
                    local = Mechanism(
                        where="local",
                        clip_norm=1.0,
                        noise_multiplier=noise,
                        delta=1e-5,
                        sampling="fixed_size",
                    )
                    job = replace(job, privacy=local)
                own = [order[at * batch : (at + 1) * batch] for at in range(2)]
                shares = [
                    found(replace(workshop, partitions=(rows,), optimizer=optimizer), job) for rows in own
                ]
                yield {
                    "attack": "words of an update",
                    "sent": name,
                    "rank": rank,
                    "batch": batch,
                    "measure": "share of words",
                    "value": float(np.mean(shares)),
                }


def found(workshop: Workshop, job: Job) -> float:
    """The share of words that the span of the first block's factors gives away."""
    (update,) = train_pack(workshop, [job])
    came = as_received(job, on_its_way(job, update))
    assert came.delta is not None
    anatomy, (rows,) = workshop.evaluated.anatomy, workshop.partitions
    sites = anatomy.sites(0, ("query", "value"))
    batch = workshop.pool.batch(rows, int(workshop.pool.lengths[rows].max()))
    return span_recovery(anatomy, sites[0], [came.delta.factors[site].a for site in sites], batch).share


def of_models(scene: Scene, workshop: Workshop) -> Iterator[Row]:
    """Membership in a model that saw few rows often, over rank."""
    order = np.random.default_rng(2).permutation(len(scene.encoded))
    members, others = order[:MEMBERS], order[MEMBERS : 2 * MEMBERS]
    optimizer = LocalOptimizer(learning_rate=3e-3, head_learning_rate=2e-2)
    for rank in (2, 16):
        blocks = workshop.evaluated.anatomy.num_blocks
        given = Assignment(
            blocks=tuple(range(blocks)),
            adapter=lora_on_top(blocks, 2, rank, targets=("query", "value")),
            batch_size=8,
            num_epochs=EPOCHS,
        )
        sent = initial_adapter(workshop.evaluated.anatomy, [given], scene.num_labels, 0)
        job = lone_job(given, sent, num_rows=MEMBERS, tokens=scene.max_length)
        own = replace(workshop, partitions=(members,), optimizer=optimizer)
        (update,) = train_pack(own, [job])
        assert update.delta is not None
        model = applied(sent, update.delta)
        shadows = trained_shadows(own, job, np.concatenate([members, others]), SHADOWS, 0)
        for name, told in (
            ("before any training", by_loss(own, sent, members, others)),
            ("by the loss", by_loss(own, model, members, others)),
            ("by likelihood ratio", by_ratio(own, model, shadows, members, others)),
        ):
            for measure, value, floor in (
                ("AUC", told.auc, 0.5),
                ("members named at 1 % false", told.true_positive_rate, 0.01),
            ):
                yield {
                    "attack": "membership",
                    "sent": name,
                    "rank": rank,
                    "measure": measure,
                    "value": value,
                    "floor": floor,
                }


COLUMNS = ("attack", "sent", "cut", "rank", "batch", "measure", "value", "floor")


def show(row: Row) -> None:
    """A row of the table, on the terminal."""
    at = ", ".join(f"{name} {row[name]}" for name in ("cut", "rank", "batch") if name in row)
    floor = f"  (floor {row['floor']:.3f})" if "floor" in row else ""
    print(
        f"{row['attack']:18s} {row['sent']:28s} {at:18s} {row['value']:7.3f} {row['measure']}{floor}",
        flush=True,
    )


def lines(place: Any, rows: Sequence[Row], over: str) -> None:
    """A line for each way of sending, over one column, above the floor."""
    styles = ["-", "--", "-.", ":"]
    names = list(dict.fromkeys((row["sent"], row.get("batch")) for row in rows))
    for number, (sent, batch) in enumerate(names):
        own = [row for row in rows if (row["sent"], row.get("batch")) == (sent, batch)]
        place.plot(
            [row[over] for row in own],
            [row["value"] for row in own],
            linestyle=styles[number % 4],
            marker="os^vDx+*P<>"[number % 11],
            color=str(0.12 * (number % 5)),
            markersize=4,
            linewidth=1,
            label=sent if batch is None else f"{sent}, batch {batch}",
        )
    for floor in {row["floor"] for row in rows if "floor" in row}:
        place.axhline(floor, color="0.6", linewidth=0.8)
    place.set(xlabel=over, ylabel=rows[0]["measure"], title=rows[0]["attack"])
    place.xaxis.get_major_locator().set_params(integer=True)
    place.legend(fontsize=5)


def draw(rows: Sequence[Row], file: Path) -> None:
    """A place for each attack that there are rows of."""
    panels = [
        ([row for row in rows if row["attack"] == "words at a cut"], "cut"),
        ([row for row in rows if row["attack"] == "images at a cut"], "cut"),
        ([row for row in rows if row["attack"] == "words of an update"], "rank"),
        ([row for row in rows if row["measure"] == "AUC"], "rank"),
    ]
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        for place, (own, over) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            if own:
                lines(place, own, over)
        figure.savefig(file, dpi=150)


def of_decoder(model: str) -> Iterator[Row]:
    """Words at all cuts of a causal LM, and by search at some."""
    scene = texts(model)
    blueprint, stock, _ = furnish(scene, "cpu")
    yield from at_cuts(scene, images=False)
    yield from by_search(scene, open_workshop(blueprint, stock))


def every(images: str, vit: str | None, shape: Sequence[int] | None) -> Iterator[Row]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        shown = pictures(images, vit or small_vit(Path(folder)), shape)
        yield from at_cuts(shown, images=True)
        yield from of_image_updates(shown)
    scene = texts()
    blueprint, stock, _ = furnish(scene, "cpu")
    workshop = open_workshop(blueprint, stock)
    yield from of_updates(scene, workshop)
    yield from of_models(scene, workshop)
    yield from at_cuts(scene, images=False)
    yield from by_search(scene, workshop)


def main() -> None:
    """Every attack, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the table and the figure")
    parser.add_argument("--images", default="glyphs", help="what data.source takes; drawn letters if absent")
    parser.add_argument("--vit", help="a vision transformer's folder or id; a random small one if absent")
    parser.add_argument(
        "--image-shape", type=int, nargs="+", help="of images that are raw pixels, such as 28 28"
    )
    parser.add_argument("--model", help="a decoder's folder or id; words at its cuts alone then")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    decoder = of_decoder(given.model) if given.model else None
    for row in decoder or every(given.images, given.vit, given.image_shape):
        show(row)
        rows.append(row)
    write(rows, given.out, draw, COLUMNS)


if __name__ == "__main__":
    main()
