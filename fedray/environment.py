"""Where a run takes place: its folder, its runtime, and what the machine and the libraries were."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, assert_never

import torch

from fedray.checkpoint import replaced
from fedray.config import Config
from fedray.config.loading import config_to_yaml
from fedray.rounds import Runtime
from fedray.runtime.local import LocalRuntime
from fedray.scene import Scene
from fedray.training.workshop import Blueprint, Stock

# Footprints are kept by content, so one folder serves all runs of a user.
CACHE_DIR = Path.home() / ".cache" / "fedray" / "footprints"
_LIBRARIES = (
    "fedray",
    "torch",
    "ray",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "flwr-datasets",
    "pyarrow",
)


def begin_folder(out: Path, config: Config, blueprint: Blueprint) -> None:
    """The run's folder with its resolved configuration and environment; what is there stays."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "config.yaml").exists():
        with replaced(out / "config.yaml") as part:
            part.write_text(config_to_yaml(config))
    with replaced(out / "environment.json") as part:
        part.write_text(json.dumps(_environment(blueprint), indent=2) + "\n")


def open_runtime(scene: Scene, blueprint: Blueprint, stock: Stock) -> Runtime:
    """The runtime that the configuration names. Raises RuntimeFailure where Ray cannot be had."""
    config = scene.config
    match config.runtime:
        case "local":
            return LocalRuntime(blueprint, stock)
        case "on_ray":
            # Ray is imported where it is used: the local runtime runs without it installed.
            from fedray.runtime.on_ray import Cluster, RayRuntime, Reservation

            section = config.ray
            own = _own_actors(scene, blueprint) if section.clients_per_actor == 1 else {}
            cluster = Cluster(
                address=section.address,
                num_actors=section.num_actors,
                own_actor={client: Reservation(**asked) for client, asked in own.items()},
                object_store_memory=section.object_store_memory,
            )
            return RayRuntime(blueprint, stock, cluster)
        case _:
            assert_never(config.runtime)


def _own_actors(scene: Scene, blueprint: Blueprint) -> dict[int, dict[str, Any]]:
    """What each client's own actor reserves: its declared memory and custom resources."""
    profiles = (scene.fleet.profile(client) for client in range(scene.partitions.num_clients))
    return {
        client: {
            "num_cpus": blueprint.threads,
            "memory_bytes": profile.memory_bytes,
            "resources": profile.resources,
        }
        for client, profile in enumerate(profiles)
    }


def _environment(blueprint: Blueprint) -> dict[str, object]:
    versions: dict[str, str | None] = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions,
        "device": blueprint.device,
        "device_name": torch.cuda.get_device_name()
        if blueprint.device.startswith("cuda")
        else platform.processor(),
        "threads_per_pack": blueprint.threads,
    }
