"""Where a run takes place: its folder, its runtime, and what the machine and the libraries were."""

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import assert_never

import torch
from transformers import PreTrainedModel

from fedray import checkpoint
from fedray.config import Config
from fedray.config.loading import config_to_yaml
from fedray.rounds import Runtime
from fedray.runtime.local import LocalRuntime
from fedray.runtime.reservation import Reservation
from fedray.scene import Scene
from fedray.serving import server_setting, shard_blueprint
from fedray.training.workshop import Blueprint, Stock
from fedray.whole_file import replaced

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


@contextmanager
def run_folder(out: Path, config: Config, device: str, threads: int) -> Iterator[None]:
    """The run's folder, with its resolved configuration and environment; what is there stays.

    A new run that fails before its first round is done takes the folder with it, so that nothing
    half-written stays and the name is free again; one that is interrupted leaves it to be resumed.

    Args:
        out: the folder.
        config: as it is left there.
        device: that computes, as torch names it.
        threads: of one pack.
    """
    existed, started = out.exists(), (out / "config.yaml").exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not started:
            with replaced(out / "config.yaml") as part:
                part.write_text(config_to_yaml(config))
        with replaced(out / "environment.json") as part:
            part.write_text(json.dumps(_environment(device, threads), indent=2) + "\n")
        yield
    except Exception:
        if not started and not checkpoint.exists(out):
            _clear(out, keep=existed)
        raise


def _clear(out: Path, *, keep: bool) -> None:
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
        return
    for left in out.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()


def open_runtime(scene: Scene, blueprint: Blueprint, stock: Stock, model: PreTrainedModel) -> Runtime:
    """The runtime that the configuration names, and the server of a run with cuts.

    Raises:
        RuntimeFailure: Ray cannot be had.
        FedrayError: the server cannot be as the configuration asks.
    """
    config = scene.config
    server = server_setting(scene)
    match config.runtime:
        case "local":
            return LocalRuntime(blueprint, stock, server)
        case "on_ray":
            # Ray is imported where it is used: the local runtime runs without it installed.
            from fedray.runtime.on_ray import Cluster, RayRuntime
            from fedray.runtime.ray_split import ServerPlan

            section = config.ray
            plan = None
            if server is not None:
                plan = ServerPlan(setting=server, zero=shard_blueprint(scene, blueprint, model))
            own = _own_actors(scene, blueprint) if section.clients_per_actor == 1 else {}
            cluster = Cluster(
                address=section.address,
                num_actors=section.num_actors,
                own_actor=own,
                num_together=config.rounds.clients_per_round if own and plan is not None else 0,
                object_store_memory=section.object_store_memory,
                server=plan,
            )
            return RayRuntime(blueprint, stock, cluster)
        case _:
            assert_never(config.runtime)


def _own_actors(scene: Scene, blueprint: Blueprint) -> dict[int, Reservation]:
    """What each client's own actor reserves: its declared memory and resources."""
    gpus = 1.0 if blueprint.device.startswith("cuda") else 0.0
    own = {}
    for client in range(scene.num_clients):
        profile = scene.fleet.profile(client)
        amounts = dict(profile.resources)
        own[client] = Reservation(
            num_cpus=amounts.pop("num_cpus", blueprint.threads),
            num_gpus=amounts.pop("num_gpus", gpus),
            memory_bytes=profile.memory_bytes,
            resources=amounts,
        )
    return own


def _environment(device: str, threads: int) -> dict[str, object]:
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
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor(),
        "threads_per_pack": threads,
    }
