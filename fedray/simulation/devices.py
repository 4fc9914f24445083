"""The clients of a simulation: as many devices as are asked for, each with the rows of one of the data's."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedray.actual import actual_of
from fedray.charging import batteries_of
from fedray.config import Config
from fedray.cost import Ints
from fedray.crowd import fleet_of
from fedray.errors import ConfigError
from fedray.presence import presence_of
from fedray.scene import Scene, set_scene
from fedray.seeds import derive_seed, uniforms


def simulated_scene(config: Config, cache_dir: Path | None, policy: object | None = None) -> Scene:
    """What a run's scene is, with ``fleet.num_clients`` devices where that is given.

    Raises:
        ConfigError: for a rule, or a server, whose traffic depends on what was trained; and as `set_scene`.
    """
    num_clients = config.fleet.num_clients
    plain = config.model_copy(update={"fleet": config.fleet.model_copy(update={"num_clients": None})})
    scene = set_scene(plain, cache_dir, policy)
    if scene.rule.moves_base:
        raise ConfigError(
            f"aggregation {scene.rule.name!r} sends clients a change of the frozen weights that grows with "
            "what is trained, and a simulation trains nothing; choose another rule, or use fedray run."
        )
    if scene.aggregation_interval > 1:
        raise ConfigError(
            f"server.aggregation_interval: {scene.aggregation_interval} sends clients what they did not keep "
            "of their training, and a simulation trains nothing; set it to 1, or use fedray run."
        )
    _refuse_attacks(config)
    if scene.poisoning is not None:
        raise ConfigError(
            f"attackers: {scene.poisoning.name} are after what is learnt, and a simulation trains nothing; "
            "drop it, or use fedray run."
        )
    if num_clients is None:
        return scene
    fleet = fleet_of(plain, num_clients)
    ids = np.arange(num_clients)
    if config.fleet.size_follows_memory:
        place = fleet.data_size_rank(ids)
    else:
        place = uniforms(derive_seed(config.seed, "row donors"), ids, 1)[:, 0]
    donors = _donors(scene.num_rows, place, in_order=config.fleet.size_follows_memory)
    return replace(
        scene,
        fleet=fleet,
        presence=presence_of(plain, fleet, num_clients),
        batteries=batteries_of(plain, fleet, num_clients),
        actual=actual_of(plain, num_clients),
        num_rows=scene.num_rows[donors],
        tokens=scene.tokens[donors],
        num_tokens=scene.num_tokens[donors],
        row_lengths=scene.row_lengths[donors],
    )


def _refuse_attacks(config: Config) -> None:
    for name in ("membership", "updates", "labels"):
        if getattr(config.attacks, name):
            raise ConfigError(
                f"attacks.{name} looks into what was learnt, and a simulation trains nothing; drop it, or "
                "use fedray run."
            )


def _donors(num_rows: Ints, place: np.ndarray, *, in_order: bool) -> Ints:
    """Whose rows each device has as many of, [devices]; ``place`` is 0 to 1, by size if ``in_order``."""
    order = np.argsort(num_rows, kind="stable") if in_order else np.arange(len(num_rows))
    last = len(order) - 1
    donors: Ints = order[np.minimum((place * len(order)).astype(np.int64), last)]
    return donors
