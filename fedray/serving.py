"""The server of a run with cuts: how it works, what its shards are opened with, and what a round gives it."""

import warnings
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path

from transformers import PreTrainedModel

from fedray.adapter import Adapter, GlobalState
from fedray.assignment import Assignment, Lora
from fedray.averaging import trains_below
from fedray.errors import ConfigError, PolicyError
from fedray.model.load import checkpoint_folder
from fedray.parts import refuse_absent_blocks
from fedray.runtime.split import ServerSetting
from fedray.scene import Scene
from fedray.server.lockstep import SplitRound
from fedray.server.settings import ServerFacts, what_stays_whole, zero_settings
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.training.boundary import read_by_loss
from fedray.training.job import Job
from fedray.training.own_weights import refuse_parts, with_own_weights
from fedray.training.packs import form_packs
from fedray.training.shares import client_share, joined, server_share, with_own_heads
from fedray.training.workshop import Blueprint

# A collective that takes longer has lost a shard.
TIME_LIMIT_SECONDS = 300.0


def server_setting(scene: Scene) -> ServerSetting | None:
    """How the server works; None without cuts.

    Raises:
        TrainingError: the task's loss cannot be computed on the server.
        ConfigError: what is asked for can be planned, but not trained yet.
    """
    if scene.server is None:
        return None
    section = scene.config.server
    _refuse_local_loss_without_classes(scene, scene.menu)
    _warn_of_a_head_that_stays(scene)
    _refuse_interval_of_nothing(scene)
    outputs = scene.num_labels or int(scene.model_config.vocab_size)
    return ServerSetting(
        num_shards=section.num_shards,
        shared=section.mode == "shared",
        order=section.order,
        attention=section.attention,
        recompute=section.recompute,
        targets=read_by_loss(scene.task, scene.meta_batch(2, 8), outputs),
        clips=scene.optimizer.max_grad_norm is not None,
        client_deadline_seconds=section.client_deadline_seconds,
    )


def shard_blueprint(scene: Scene, blueprint: Blueprint, model: PreTrainedModel) -> ShardBlueprint | None:
    """What a ZeRO shard is opened with; None where the server's blocks lie in one process.

    Raises:
        ConfigError: for settings that cannot take effect, or several dtypes.
    """
    section = scene.config.server
    if scene.server is None or section.engine == "in_process":
        return None
    dtypes = list(scene.anatomies)
    if len(dtypes) > 1:
        raise ConfigError(
            f"server.engine: zero holds the blocks in one dtype, and menu.dtypes asks for "
            f"{', '.join(dtypes)}; choose one of them, or server.engine: in_process."
        )
    anatomy = scene.anatomy
    params = [parameter.numel() for parameter in anatomy.model.parameters()]
    facts = ServerFacts(
        num_params=sum(params),
        block_params=max(sum(p.numel() for p in block.parameters()) for block in anatomy.blocks),
        largest_param=max(params),
        dtype=dtypes[0],
        micro_batch=max(scene.config.menu.per_device_train_batch_size),
        num_shards=section.num_shards,
        has_libaio=find_library("aio") is not None,
    )
    settings = zero_settings(section.deepspeed or "zero3", facts)
    for sentence in what_stays_whole(settings, facts):
        warnings.warn(sentence, stacklevel=2)
    return ShardBlueprint(
        config=scene.model_config,
        checkpoint=Path(checkpoint_folder(scene.config.model.name)),
        num_blocks=anatomy.num_blocks,
        dtype=dtypes[0],
        task=scene.task,
        optimizer=scene.optimizer,
        buffers={name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        targets=blueprint.targets,
        attention=section.attention,
        recompute=section.recompute,
        settings=settings,
        threads=blueprint.threads,
        device=blueprint.device,
        time_limit_seconds=TIME_LIMIT_SECONDS,
    )


def start_of(scene: Scene, state: GlobalState, assignment: Assignment, sent: Adapter) -> Adapter:
    """What a client's round starts from: what it is sent and, with a shared server, the server's own.

    Raises:
        PolicyError: the policy's assignment trains A where the run does not, or the reverse; or it runs
            blocks that no client's process has.
    """
    _refuse_another_a(assignment, sent)
    refuse_absent_blocks(scene.config, scene.anatomy.num_blocks, assignment)
    refuse_parts(scene.rule, scene.anatomy, [assignment])
    own = with_own_weights(scene.anatomy, assignment, state, with_own_heads(assignment, sent))
    if not assignment.split or scene.config.server.mode == "replica":
        return own
    theirs = server_share(scene.anatomy, assignment, state.adapter)
    return joined(client_share(scene.anatomy, assignment, own), theirs)


def _refuse_another_a(assignment: Assignment, sent: Adapter) -> None:
    for factors in sent.factors.values():
        if isinstance(assignment.adapter, Lora) and assignment.adapter.train_a != factors.train_a:
            raise PolicyError(
                f"The policy gave {assignment} with train_a = {assignment.adapter.train_a}, and in this run "
                f"{'everybody trains' if factors.train_a else 'nobody trains'} A; make it from entries of "
                "view.menu, or set menu.train_lora_a."
            )


def _refuse_local_loss_without_classes(scene: Scene, assignments: Sequence[Assignment]) -> None:
    """Raises ConfigError."""
    if any(assignment.local_loss for assignment in assignments) and not scene.num_labels:
        raise ConfigError(
            f"menu.local_loss trains a classifier at the cut, and the task {scene.config.task.name!r} has no "
            "classes; drop it, or choose a classification task."
        )


def _warn_of_a_head_that_stays(scene: Scene) -> None:
    if scene.num_labels and all(assignment.is_black_box for assignment in scene.menu):
        warnings.warn(
            f"All {len(scene.menu)} assignments of the menu are black-box clients', for whom nothing above a "
            "cut is trained, so the new head stays as it was drawn; list 0 beside menu.perturbations, or set "
            "menu.whole: true.",
            stacklevel=3,
        )


def _refuse_a_server_that_moves(scene: Scene, assignments: Sequence[Assignment]) -> None:
    """Raises PolicyError: of a menu the configuration was refused."""
    if scene.config.server.mode == "shared" and any(assignment.is_black_box for assignment in assignments):
        raise PolicyError(
            "The policy gave a client a cut and perturbations, so that it takes the difference of two looks, "
            "and with server.mode: shared the server's blocks change between them; set server.mode: replica, "
            "or make it from entries of view.menu."
        )


def _refuse_interval_of_nothing(scene: Scene) -> None:
    """Raises ConfigError."""
    interval = scene.aggregation_interval
    if interval > 1 and not any(trains_below(scene, assignment) for assignment in scene.menu):
        raise ConfigError(
            f"What lies below the cuts is averaged every {interval} rounds, and none of the menu's "
            f"{len(scene.menu)} assignments trains anything there; set server.aggregation_interval to 1, or "
            "give more menu.depths or menu.tails."
        )


def split_round(scene: Scene, state: GlobalState, jobs: Sequence[Job]) -> SplitRound:
    """The packs of a round's clients with cuts; a queue takes them one by one."""
    section = scene.config.server
    given = [job.assignment for job in jobs]
    _refuse_local_loss_without_classes(scene, given)
    _refuse_a_server_that_moves(scene, given)
    size = scene.config.packs.clients_per_pack if section.order == "sweep" else 1
    packs = dict(enumerate(form_packs(jobs, size)))
    shared = _ridden(scene, state, jobs) if section.mode == "shared" else None
    return SplitRound(packs=packs, shared=shared, base_delta=state.base_delta)


def _ridden(scene: Scene, state: GlobalState, jobs: Sequence[Job]) -> Adapter:
    """The part of the global adapter that the server runs for at least one client."""
    rides = [server_share(scene.anatomy, job.assignment, state.adapter) for job in jobs]
    return Adapter(
        factors={site: factors for ride in rides for site, factors in ride.factors.items()},
        head={name: tensor for ride in rides for name, tensor in ride.head.items()},
    )
