"""What each cut gives away of a run's rows, measured once for a model and its rows, and kept."""

import hashlib
import json
from pathlib import Path

import numpy as np

from fedray import attacks
from fedray.attacks.inversion import Sent, token_recovery
from fedray.config import Config
from fedray.model.anatomy import dissect
from fedray.model.load import load_backbone
from fedray.privacy import cut_noise_of
from fedray.seeds import generator
from fedray.training.data import Encoded
from fedray.training.task import Task
from fedray.whole_file import kept


def leakage_of(config: Config, task: Task, encoded: Encoded, cache_dir: Path | None) -> dict[int, float]:
    """Of each cut the share of tokens that activation inversion finds; empty where it is not asked for.

    Half of the rows that are drawn are the attacker's own, the others are those it looks into; adapters are
    as before round 1, and hidden states as noisy as clients make them. See `fedray.attacks.inversion`.

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
    file = None if cache_dir is None else cache_dir / f"leakage-{_content(config, encoded, drawn)}.json"
    if file is not None and file.exists():
        return {int(cut): share for cut, share in json.loads(file.read_text()).items()}
    anatomy = dissect(load_backbone(config.model.name, task.head, "fp32")[0])
    half = len(drawn) // 2
    sent = Sent(protection=cut_noise_of(config), seed=config.seed)
    found = token_recovery(anatomy, encoded, drawn[:half], drawn[half:], sent)
    if file is not None:
        kept(file, json.dumps(found))
    return found


def _content(config: Config, encoded: Encoded, drawn: np.ndarray) -> str:
    words = [encoded.lists[name].tobytes() for name in sorted(encoded.lists)]
    attack = sorted(Path(attacks.__file__).parent.glob("*.py"))
    parts = [*(path.read_bytes() for path in attack), *words]
    facts = f"{config.model.name} {drawn.tolist()} {config.seed} {cut_noise_of(config)}"
    digest = hashlib.sha256(facts.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
