"""A process joins a Ray cluster or starts Ray here; what Ray says of failures is put into a line."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import ray

from fedray.errors import RuntimeFailure
from fedray.runtime.address import refuse_silence
from fedray.runtime.reservation import Reservation, amounts_in_words


def join(address: str | None, num_cpus: int, object_store_memory: int | None) -> bool:
    """Join the cluster at an address, or start Ray on this machine.

    Args:
        address: HOST:PORT; None or ``"local"`` starts one.
        num_cpus: that a Ray started here has.
        object_store_memory: bytes, likewise.

    Returns:
        Whether Ray was started here, and so must be ended here.

    Raises:
        RuntimeFailure: there is none at the address, or this process is in another one.
    """
    address = None if address == "local" else address
    if ray.is_initialized():
        _refuse_another(address)
        return False
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=num_cpus,
                object_store_memory=object_store_memory,
                **quiet,
            )
        else:
            refuse_silence(address)
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, SystemExit) as error:
        where = "on this machine" if address is None else f"at {address!r}"
        raise RuntimeFailure(
            f"No Ray cluster could be reached {where}: {said(error)}. Start one with 'ray start "
            "--head', give its address as HOST:6379, or leave the address out to start Ray here."
        ) from error
    # A cluster that others started is left running.
    return address is None


def _refuse_another(address: str | None) -> None:
    """A process is in one cluster at a time. Raises RuntimeFailure if that is not the one asked for."""
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise RuntimeFailure(
            f"ray.address is {address!r}, and this process is in the cluster at {here!r} already; call "
            "ray.shutdown() first, or leave the address out."
        )


def send_by_value(task: object) -> None:
    """A task from a file is no module that an actor could import: send its code along."""
    module = sys.modules[type(task).__module__]
    if not module.__name__.startswith("fedray."):
        ray.cloudpickle.register_pickle_by_value(module)


def said(error: BaseException) -> str:
    """The line that tells: the last of a traceback from an actor's start, otherwise the first."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[-1] if "creation task" in lines[0] else lines[0]).rstrip(".")


def not_placed(reservations: Sequence[Reservation]) -> str:
    """That these actors have no room, with what there is, and what to change."""
    several = f"{len(reservations)} actors, the first with " if len(reservations) > 1 else "an actor with "
    return (
        f"Ray has no room for {several}{amounts_in_words(reservations[0].amounts())}: the cluster has "
        f"{amounts_in_words(ray.cluster_resources())}, free are "
        f"{amounts_in_words(ray.available_resources())}. Ask for fewer actors (ray.num_actors), declare "
        "less memory and fewer resources per client, or add nodes."
    )
