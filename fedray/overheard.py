"""What a run looks into of what its server has: some clients' updates, and what goes up at tails.

It is heard where taps hear, so after a client's own noise and codecs. Which clients are looked into is drawn
by the seed of run and round; who comes first is no matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log10

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import Adapter
from fedray.attacks.labels import by_direction, counts_in
from fedray.attacks.tried import Tried
from fedray.model.codecs import decode
from fedray.record import RoundRecord
from fedray.rounds import Runtime, Trained
from fedray.runtime.carrier import LookInto
from fedray.scene import Scene
from fedray.seeds import derive_seed, uniforms
from fedray.training.data import Rows
from fedray.training.job import Job, Update
from fedray.training.tap import Crossing, Tap
from fedray.training.train import rows_of_steps

_LABEL = "label"


@dataclass(slots=True)
class _Heard:
    """Of one client: its update, and of each row at a tail the gradient that first came up for it, [D]."""

    job: Job
    delta: Adapter | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)
    sent_up: dict[int, tuple[int, ...]] = field(default_factory=dict)  # rows by step


class Ear(Tap):
    """Keeps of a round what is looked into, of as many clients as are asked for."""

    def __init__(self, scene: Scene, round_number: int) -> None:
        """Args: scene: whose configuration says how many; ``round_number``: that is heard."""
        self._lengths, self._count = scene.encoded.lengths, scene.config.attacks.clients
        self._seed = derive_seed(scene.config.seed, "looked into", round_number)
        self._heard: dict[int, _Heard] = {}

    @property
    def heard(self) -> dict[int, _Heard]:
        """Of the clients with the smallest draws, by client."""
        return dict(sorted(self._heard.items()))

    def update(self, job: Job, update: Update) -> None:
        """An update that came."""
        found = self._of(job)
        if found is not None:
            found.delta = update.delta

    def crossed(self, job: Job, crossing: Crossing) -> None:
        """What goes up under a tail: which rows a step has, then their gradients."""
        found = self._of(job) if job.assignment.tail else None
        if found is None:
            return
        if crossing.passing == "states_up":
            found.sent_up[crossing.step] = crossing.message.rows
        elif crossing.passing == "gradient_up" and crossing.message.states is not None:
            rows = found.sent_up[crossing.step]
            sizes = self._lengths[list(rows)].tolist()
            tokens = decode(crossing.message.states).float().cpu().split(sizes)
            for row, own in zip(rows, tokens, strict=True):
                found.gradients.setdefault(row, own.sum(0))

    def _of(self, job: Job) -> _Heard | None:
        """Where to keep what a client says; None if it is not among those looked into."""
        client = job.client_id
        self._heard.setdefault(client, _Heard(job))
        if len(self._heard) > self._count:
            ids = np.array(list(self._heard))
            draws = uniforms(self._seed, ids)[:, 0]
            del self._heard[int(ids[draws.argmax()])]
        return self._heard.get(client)


def ear_for(scene: Scene, round_number: int) -> Ear | None:
    """Whoever listens to a round that is evaluated; None where no attack looks into it."""
    asked = scene.config.attacks
    return Ear(scene, round_number) if asked.updates or asked.labels else None


def with_overheard(
    scene: Scene, record: RoundRecord, ear: Ear, trained: Trained, runtime: Runtime
) -> RoundRecord:
    """The record of a round with what was found of what its server had; as it is where nobody's came.

    Args:
        scene: whose configuration asks for it.
        record: of the round.
        ear: that heard it.
        trained: what clients started from.
        runtime: where updates are looked into.
    """
    own = {
        client: np.unique(np.concatenate(rows_of_steps(one.job, scene.partitions.train[client])))
        for client, one in ear.heard.items()
        if one.delta is not None
    }
    if scene.config.attacks.updates:
        record = _with_rows(scene, record, ear, own, trained, runtime)
    return _with_labels(scene, record, ear, own) if scene.config.attacks.labels else record


def _with_rows(
    scene: Scene,
    record: RoundRecord,
    ear: Ear,
    own: Mapping[int, Rows],
    trained: Trained,
    runtime: Runtime,
) -> RoundRecord:
    orders = []
    for client, rows in own.items():
        one = ear.heard[client]
        assert one.delta is not None, "of those whose updates came"
        orders.append(
            LookInto(
                job=one.job,
                delta=one.delta,
                rows=rows,
                search_steps=scene.config.attacks.search_steps,
                base_delta=trained.base_delta,
            )
        )
    answers = [done.answer for done in runtime.carry_out(orders)]
    told = [answer for answer in answers if isinstance(answer, Tried)]
    if not told:
        return record
    found, floor, of = (sum(getattr(one, name) for one in told) for name in ("found", "floor", "of"))
    if scene.anatomy.takes_text:
        return replace(record, words_found=found / of, words_floor=floor / of)
    return replace(record, images_psnr=_decibels(found / of), images_floor=_decibels(floor / of))


def _decibels(error: float) -> float:
    """PSNR of a mean squared error of numbers whose range is one; an error of rounding counts as its size."""
    return -10 * log10(max(error, float(np.finfo(np.float32).eps) ** 2))


def _with_labels(scene: Scene, record: RoundRecord, ear: Ear, own: Mapping[int, Rows]) -> RoundRecord:
    """Under a tail by the direction of rows' gradients, one row of each class known; else by updates."""
    truth = torch.from_numpy(scene.encoded.numbers[_LABEL]).long()
    right, asked = _by_updates(ear, own, truth)
    gradients = {row: g for one in ear.heard.values() for row, g in one.gradients.items()}
    if gradients:
        rows = sorted(gradients)
        labels = truth[rows]
        known = torch.zeros(len(rows), dtype=torch.bool)
        known[[int((labels == one).nonzero()[0]) for one in labels.unique()]] = True
        every = torch.stack([gradients[row] for row in rows])
        said = by_direction(every[known], labels[known], every[~known])
        right += int((said == labels[~known]).sum())
        asked = torch.cat([asked, labels[~known]])
    if not len(asked):
        return record
    floor = int(asked.bincount().max())
    return replace(record, labels_found=right / len(asked), labels_floor=floor / len(asked))


def _by_updates(ear: Ear, own: Mapping[int, Rows], truth: Tensor) -> tuple[int, Tensor]:
    """How many labels of whole models' rows are told, and which these rows have."""
    right, asked = 0, [truth[:0]]
    for client, rows in own.items():
        one = ear.heard[client]
        bias = _bias(one.delta)
        if one.job.assignment.split or bias is None:
            continue
        labels = truth[rows]
        said = counts_in(-bias, len(rows))
        right += int(torch.minimum(said, labels.bincount(minlength=len(said))).sum())
        asked.append(labels)
    return right, torch.cat(asked)


def _bias(delta: Adapter | None) -> Tensor | None:
    """Of the last of a client's heads; None where it has none."""
    named = [] if delta is None else [t for name, t in delta.head.items() if name.endswith("bias")]
    return named[-1] if named else None
