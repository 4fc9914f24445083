"""What each cut gives away of a run's rows, measured once for a model and its rows, and kept."""

import json
from pathlib import Path

import numpy as np

from fedray import attacks
from fedray.attacks.inversion import Sent, token_recovery
from fedray.attacks.pictures import image_recovery, mean_image, share_told
from fedray.attacks.searched import searched_recovery
from fedray.config import Config
from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.load import checkpoint_files, load_backbone
from fedray.privacy import cut_noise_of
from fedray.seeds import generator
from fedray.training.data import Encoded, Rows
from fedray.training.task import Task
from fedray.whole_file import kept, named_by


def leakage_of(config: Config, task: Task, encoded: Encoded, cache_dir: Path | None) -> dict[int, float]:
    """Of each cut what activation inversion finds, from 0 to 1; empty where it is not asked for.

    Of texts it is the share of tokens, by a linear decoder at all cuts (`fedray.attacks.inversion`), or by a
    search at the menu's (`fedray.attacks.searched`); of images the share of what tells them from the mean one
    (`fedray.attacks.pictures`). Half of the rows that are drawn are the attacker's own, the others are those
    it looks into; adapters are as before round 1, and hidden states as noisy as clients make them.

    Args:
        config: checked already.
        task: for the head that the model is loaded with.
        encoded: all rows.
        cache_dir: where what was measured is kept, by content; None keeps nothing.

    Raises:
        ConfigError: for a search of images.
    """
    asked = config.leakage
    if not asked.measure:
        return {}
    count = min(asked.rows, len(encoded.lengths))
    drawn = generator(config.seed, "leakage").permutation(len(encoded.lengths))[:count]
    file = None if cache_dir is None else cache_dir / f"leakage-{_content(config, task, encoded, drawn)}.json"
    if file is not None and file.exists():
        return {int(cut): share for cut, share in json.loads(file.read_text()).items()}
    anatomy = dissect(load_backbone(config.model.name, task.head, "fp32")[0])
    found = _found(config, anatomy, encoded, drawn)
    if file is not None:
        kept(file, json.dumps(found))
    return found


def _found(config: Config, anatomy: Anatomy, encoded: Encoded, drawn: Rows) -> dict[int, float]:
    known, private = np.split(drawn, [len(drawn) // 2])
    sent = Sent(protection=cut_noise_of(config), seed=config.seed)
    if config.leakage.attack == "search":
        if not anatomy.takes_text:
            raise ConfigError(
                "leakage.attack: search tries words, and into this model go images; drop it, a decoder is "
                "what inverts them."
            )
        looked_into = private[: config.leakage.search_rows]
        return searched_recovery(anatomy, encoded, known, looked_into, sent, sorted(set(config.menu.cuts)))
    if anatomy.takes_text:
        return token_recovery(anatomy, encoded, known, private, sent)
    floor = mean_image(encoded, known, private)
    found = image_recovery(anatomy, encoded, known, private, sent)
    return {cut: share_told(value, floor) for cut, value in found.items()}


def _content(config: Config, task: Task, encoded: Encoded, drawn: Rows) -> str:
    asked = config.leakage
    attack = sorted(Path(attacks.__file__).parent.glob("*.py"))
    words = [encoded.lists[name].tobytes() for name in sorted(encoded.lists)]
    arrays = [encoded.arrays[name][drawn].tobytes() for name in sorted(encoded.arrays)]
    searched = (sorted(set(config.menu.cuts)), asked.search_rows) if asked.attack == "search" else ()
    facts = f"{task.head} {drawn.tolist()} {config.seed} {cut_noise_of(config)} {asked.attack} {searched}"
    return named_by([*attack, *checkpoint_files(config.model.name)], facts.encode(), *words, *arrays)
