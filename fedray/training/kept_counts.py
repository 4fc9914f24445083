"""Counts of traced steps on disk, by the content of all that they follow from."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import transformers

from fedray import model, training
from fedray.model.counter import Terms
from fedray.model.trace import StepCounts
from fedray.whole_file import kept

# What a trace runs through: a change in any of these files makes a footprint another one.
_TRACED = (Path(model.__file__).parent, Path(training.__file__).parent)


class KeptCounts:
    """JSON files of counts; one folder may serve many subjects."""

    def __init__(self, folder: Path | None, facts: Sequence[object]) -> None:
        """Args: folder: None keeps nothing; ``facts``: JSON's own types, what all counts follow from."""
        libraries = torch.__version__, transformers.__version__
        self._folder = folder
        self._content = json.dumps([_sources(), libraries, *facts])

    def find(self, key: str) -> StepCounts | None:
        """What was kept under a key."""
        path = self._path(key)
        return _from_json(path.read_text()) if path is not None and path.exists() else None

    def keep(self, key: str, counts: StepCounts) -> None:
        """A reader never sees half a file; a full disk keeps nothing."""
        path = self._path(key)
        if path is not None:
            kept(path, _to_json(counts))

    def _path(self, key: str) -> Path | None:
        name = hashlib.sha256(f"{self._content}{key}".encode()).hexdigest()
        return None if self._folder is None else self._folder / f"{name}.json"


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in _TRACED for path in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _to_json(counts: StepCounts) -> str:
    return json.dumps({
        "phases": [[name, index, terms] for (name, index), terms in counts.phases.items()],
        "ops": [[flops, moved, times] for (flops, moved), times in counts.ops.items()],
        "forward_flops": counts.forward_flops,
        "backward_flops": counts.backward_flops,
        "turn_flops": counts.turn_flops,
    })  # fmt: skip


def _from_json(text: str) -> StepCounts:
    found = json.loads(text)
    phases: dict[tuple[str, int], Terms] = {(name, index): terms for name, index, terms in found["phases"]}
    ops: Counter[tuple[int, int]] = Counter({(flops, moved): times for flops, moved, times in found["ops"]})
    return StepCounts(
        phases=phases,
        ops=ops,
        forward_flops=found["forward_flops"],
        backward_flops=found["backward_flops"],
        turn_flops=found["turn_flops"],
    )
