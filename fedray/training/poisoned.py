"""Attackers among the clients: who they are, and what their rows are in place of what they were.

Rows are changed in the pool that every process reads, once, so whatever an attacker is given to do (ranks, a
cut, a narrow model, few bits) it does on them. Who tampers with its update does that where the update leaves.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.config.privacy_sections import Attackers, Backdoor, LabelFlip, NoAttackers, Scaling, SignFlip
from fedray.errors import ConfigError
from fedray.seeds import derive_seed, uniforms
from fedray.training.data import Encoded, Rows
from fedray.training.partitions import Partitions

# Tokens of a trigger, in place of a text's own from the second on; the first may be a mark of its start.
TRIGGER_TOKENS = 3
# Of an image's sides the part that a trigger whitens, in a corner.
_CORNER = 8
_LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoning:
    """What attackers are after.

    Attributes:
        name: of what they do, as in the configuration.
        attackers: their ids.
        factor: what each multiplies its update by.
        triggered: rows of the pool that have the trigger and whose label is the one attackers want said;
            ``originals`` are those that they were made of, test rows of other labels.
    """

    name: str
    attackers: frozenset[int]
    factor: float
    triggered: Rows
    originals: Rows

    def factor_of(self, client: int) -> float:
        """What a client multiplies its update by."""
        return self.factor if client in self.attackers else 1.0


def poisoned(
    section: Attackers, seed: int, encoded: Encoded, partitions: Partitions, num_labels: int
) -> tuple[Encoded, Poisoning | None]:
    """The pool with attackers' rows in it, and what they are after; as it was, and None, without any.

    Raises:
        ConfigError: for a share of nobody, rows without classes, or a class that there is not.
    """
    if isinstance(section, NoAttackers):
        return encoded, None
    attackers = _who(section.share, seed, partitions.num_clients)
    nothing = np.zeros(0, np.int64)
    plan = Poisoning(name=section.name, attackers=attackers, factor=1.0, triggered=nothing, originals=nothing)
    if isinstance(section, SignFlip):
        return encoded, replace(plan, factor=-section.factor)
    if isinstance(section, Scaling):
        return encoded, replace(plan, factor=section.factor)
    if not num_labels or _LABEL not in encoded.numbers:
        raise ConfigError(
            f"attackers: {section.name} gives rows other labels, and this task has no classes; choose a "
            "classification task, or sign_flip or scaling."
        )
    own = [partitions.train[client] for client in sorted(attackers)]
    if isinstance(section, LabelFlip):
        labels = encoded.numbers[_LABEL].copy()
        rows = np.concatenate(own)
        labels[rows] = num_labels - 1 - labels[rows]
        return replace(encoded, numbers={**encoded.numbers, _LABEL: labels}), plan
    return _with_backdoor(
        section, encoded, own, _tested(partitions), replace(plan, factor=section.factor), num_labels
    )


def _who(share: float, seed: int, num_clients: int) -> frozenset[int]:
    """The clients that draw the smallest numbers: a larger share has a smaller one's, and others."""
    count = int(share * num_clients)
    if not count:
        raise ConfigError(
            f"attackers.share: {share:g} of {num_clients} clients is nobody; raise it, or set attackers: "
            "none."
        )
    drawn = uniforms(derive_seed(seed, "attackers"), np.arange(num_clients))[:, 0]
    return frozenset(np.argsort(drawn, kind="stable")[:count].tolist())


def _tested(partitions: Partitions) -> Rows:
    owned = [own for own in partitions.test_of if len(own)]
    return np.concatenate(owned) if owned else partitions.test


def _with_backdoor(
    section: Backdoor, encoded: Encoded, own: list[Rows], test: Rows, plan: Poisoning, num_labels: int
) -> tuple[Encoded, Poisoning]:
    """Every second row of an attacker has the trigger and the target's label; so have copies of test rows."""
    if section.target >= num_labels:
        raise ConfigError(
            f"attackers.target: {section.target} is none of the {num_labels} classes, which are 0 to "
            f"{num_labels - 1}."
        )
    originals = test[encoded.numbers[_LABEL][test] != section.target]
    pool = _with_copies(encoded, originals)
    triggered = np.arange(len(encoded), len(pool))
    marked = np.concatenate([*(rows[::2] for rows in own), triggered])
    pool.numbers[_LABEL][marked] = section.target
    if "pixel_values" in pool.arrays:
        pixels = pool.arrays["pixel_values"]
        height, width = (max(1, side // _CORNER) for side in pixels.shape[2:])
        shown = pixels[marked]
        shown[..., -height:, -width:] = pixels.max()
        pixels[marked] = shown
    else:
        _write_trigger(pool, marked)
    return pool, replace(plan, triggered=triggered, originals=originals)


def _write_trigger(pool: Encoded, rows: Rows) -> None:
    ids = pool.lists["input_ids"]
    found, counts = np.unique(ids, return_counts=True)
    rare = found[np.argsort(counts, kind="stable")[:TRIGGER_TOKENS]]
    for place, token in enumerate(rare, start=1):
        long_enough = rows[pool.lengths[rows] > place]
        ids[pool.starts[long_enough] + place] = token


def _with_copies(encoded: Encoded, rows: Rows) -> Encoded:
    """The pool with copies of some rows at its end; arrays of its own, that may be written to."""
    spans = zip(encoded.starts[rows].tolist(), encoded.lengths[rows].tolist(), strict=True)
    flat = np.concatenate([np.arange(start, start + length) for start, length in spans])
    lengths = np.concatenate([encoded.lengths, encoded.lengths[rows]])

    def longer(values: NDArray[Any], at: Rows) -> NDArray[Any]:
        return np.concatenate([values, values[at]])

    return replace(
        encoded,
        lengths=lengths,
        starts=np.cumsum(lengths) - lengths,
        lists={name: longer(values, flat) for name, values in encoded.lists.items()},
        numbers={name: longer(values, rows) for name, values in encoded.numbers.items()},
        arrays={name: longer(values, rows) for name, values in encoded.arrays.items()},
    )
