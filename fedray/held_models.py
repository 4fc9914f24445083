"""The model that clients of each device class can hold by themselves after a run, and its accuracy.

Of a client it is the largest of what fits it on the menu without a cut, and of what the policy gave it
without one. Larger is more blocks times width, then fewer zeros, then more bits. Of a class it is the largest
that at least half of its clients hold; of unlike ones of a size that which most of these hold.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedray.assignment import Assignment
from fedray.evaluation import evaluate_part
from fedray.exits import has_last_head
from fedray.holdings import Holdings
from fedray.policy import Bools
from fedray.progress import Progress
from fedray.record import ClassRecord, ClientRecord
from fedray.rounds import Runtime
from fedray.scene import Scene
from fedray.scheduler import Pricing, price_menu

Size = tuple[float, float, int, bool]
_NOTHING: Size = (0.0, 0.0, 0, False)


def held_models(scene: Scene, progress: Progress, runtime: Runtime) -> list[ClassRecord]:
    """A record for each device class, the classes by name; each distinct model is evaluated once.

    The whole model, as the run evaluates it, is not evaluated again.
    """
    largest = _largest(scene, progress.clients)
    classes = scene.fleet.device_class(np.arange(scene.num_clients))
    last = progress.rounds[-1]
    known: dict[str, tuple[float | None, float | None]] = {}
    records = []
    for name in np.unique(classes).tolist():
        own = [largest[client] for client in np.flatnonzero(classes == name).tolist()]
        model = of_class(own)
        accuracy = loss = None
        if model is not None:
            key = _part(model)
            if key not in known:
                whole = is_whole(scene, model)
                known[key] = (
                    (last.accuracy, last.loss)
                    if whole
                    else evaluate_part(scene, progress.state, model, runtime)
                )
            accuracy, loss = known[key]
        records.append(
            ClassRecord(
                device_class=name,
                num_clients=len(own),
                num_holding=sum(one is not None for one in own),
                assignment="" if model is None else model.to_json(),
                model="" if model is None else words_of(model, scene.anatomy.num_blocks),
                accuracy=accuracy,
                loss=loss,
            )
        )
    return records


def of_class(own: Sequence[Assignment | None]) -> Assignment | None:
    """The largest that at least half of a class's clients hold, from each one's largest; or None."""
    sizes = sorted((_NOTHING if one is None else size_of(one) for one in own), reverse=True)
    middle = sizes[(len(sizes) - 1) // 2]
    alike = Counter(_part(one) for one in own if one is not None and size_of(one) == middle)
    if not alike:
        return None
    part = min(alike, key=lambda text: (-alike[text], text))
    return next(one for one in own if one is not None and _part(one) == part)


def size_of(model: Assignment) -> Size:
    """What makes one model larger than another."""
    share = 1.0 if model.width is None else model.width.share
    return len(model.blocks) * share, 1.0 - model.sparsity, model.weight_bits or 32, model.dtype == "fp32"


def is_whole(scene: Scene, model: Assignment) -> bool:
    """Whether it is the model that the run itself evaluates."""
    dtype = "fp32" if "fp32" in scene.anatomies else next(iter(scene.anatomies))
    return (
        len(model.blocks) == scene.anatomy.num_blocks
        and model.width is None
        and model.weight_bits is None
        and not model.sparsity
        and model.dtype == dtype
        and has_last_head(model.exits, len(model.blocks))
    )


def words_of(model: Assignment, num_blocks: int) -> str:
    """How it differs from the whole: ``4 of 6 blocks, 8 bits``."""
    blocks = model.blocks
    leading = blocks == tuple(range(len(blocks)))
    named = "" if leading else f" ({', '.join(map(str, blocks))})"
    parts = [f"{len(blocks)} of {num_blocks} blocks{named}"] if len(blocks) < num_blocks else []
    if model.width is not None:
        parts.append(str(model.width))
    if model.weight_bits is not None:
        parts.append(f"{model.weight_bits} bits")
    if model.sparsity:
        parts.append(f"{model.sparsity:g} zero")
    return ", ".join(parts) or "whole"


def _part(model: Assignment) -> str:
    """Equal of two assignments that have the same model, whatever they train of it."""
    head = "" if has_last_head(model.exits, len(model.blocks)) else f" exit {model.exits[-1]}"
    frozen = model.width, model.weight_bits, model.sparsity, model.dtype
    return f"{model.blocks} {frozen}{head}"


def _largest(scene: Scene, records: Sequence[ClientRecord]) -> list[Assignment | None]:
    """Of each client what it can hold, [clients]."""
    alone = sorted({_part(one): one for one in scene.menu if not one.split}.values(), key=size_of)
    fits = _fits(scene, [one for one in scene.menu if not one.split])
    found: list[Assignment | None] = [None] * scene.num_clients
    for entry in alone:
        holds = fits.get(_part(entry))
        for client in np.flatnonzero(holds).tolist() if holds is not None else []:
            found[client] = entry
    for record in records:
        given = Assignment.from_json(record.assignment)
        old = found[record.client_id]
        if not given.split and (old is None or size_of(given) > size_of(old)):
            found[record.client_id] = given
    return found


def _fits(scene: Scene, menu: Sequence[Assignment]) -> dict[str, Bools]:
    """By model, whether any of the menu's entries that have it fits each client, [clients]."""
    if not menu:
        return {}
    everybody = np.arange(scene.num_clients)
    pricing = Pricing(footprint_of=scene.footprint, holdings=Holdings(scene.num_clients))
    offers = price_menu(menu, scene.cohort(1, everybody), pricing)
    found: dict[str, Bools] = {}
    for entry, row in zip(menu, offers.fits, strict=True):
        key = _part(entry)
        found[key] = row | found.get(key, np.zeros(len(row), np.bool_))
    return found
