"""What each cut gives away of a run's rows, measured once for a model and its rows, and kept."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from fedray.attacks.inversion import token_recovery
from fedray.config import Config
from fedray.model.anatomy import dissect
from fedray.model.load import load_backbone
from fedray.seeds import generator
from fedray.training.data import Encoded
from fedray.training.task import Task


def leakage_of(config: Config, task: Task, encoded: Encoded, cache_dir: Path | None) -> dict[int, float]:
    """Of each cut the share of tokens that activation inversion finds; empty where it is not asked for.

    Half of the rows that are drawn are the attacker's own, the others are those it looks into; adapters are
    as before round 1. See `fedray.attacks.inversion`.

    Args:
        config: checked already.
        task: for the head that the model is loaded with.
        encoded: all rows.
        cache_dir: where what was measured is kept, by content; None keeps nothing.

    Raises:
        ConfigError: for a model of images.
    """
    asked = config.leakage
    if not asked.measure:
        return {}
    count = min(asked.rows, len(encoded.lengths))
    drawn = generator(config.seed, "leakage").permutation(len(encoded.lengths))[:count]
    kept = None if cache_dir is None else cache_dir / f"leakage-{_content(config, encoded, drawn)}.json"
    if kept is not None and kept.exists():
        return {int(cut): share for cut, share in json.loads(kept.read_text()).items()}
    anatomy = dissect(load_backbone(config.model.name, task.head, "fp32")[0])
    half = len(drawn) // 2
    found = token_recovery(anatomy, encoded, drawn[:half], drawn[half:])
    if kept is not None:
        _keep(kept, found)
    return found


def _content(config: Config, encoded: Encoded, drawn: np.ndarray) -> str:
    words = [encoded.lists[name].tobytes() for name in sorted(encoded.lists)]
    parts = [Path(__file__).with_name("attacks").joinpath("inversion.py").read_bytes(), *words]
    digest = hashlib.sha256(f"{config.model.name} {drawn.tolist()}".encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _keep(path: Path, found: dict[int, float]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # a full disk keeps nothing
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(found))
        partial.replace(path)
