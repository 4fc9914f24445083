"""A client's submodel of a run as a Hugging Face folder, to be run on a device without fedray."""

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch

from fedray import checkpoint
from fedray.adapter import Adapter, GlobalState
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.environment import CACHE_DIR
from fedray.errors import ConfigError
from fedray.model.anatomy import dissect
from fedray.model.export import HEAD, folded, plain, replacing
from fedray.model.load import load_backbone, load_processor
from fedray.model.submodel import last_head, submodel
from fedray.record import ClientRecord
from fedray.scene import Scene, set_scene
from fedray.trained import Prompt, Weights
from fedray.training.own_weights import with_own_weights
from fedray.training.shapes import site_ranks
from fedray.training.shares import head_prefixes, in_blocks, with_own_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and for which assignment."""

    folder: Path
    assignment: Assignment


def export(run: Path, client: int, out: Path) -> Exported:
    """Write what one client of a run could run of the model as it is now: its last assignment's part.

    ``AutoModel.from_pretrained(out)``, or ``AutoModelForCausalLM``, loads it; LoRA is merged, and what was
    rounded to few bits lies there as numbers of the dtype. A classifier's head is beside, in
    ``head.safetensors``: a linear layer on the mean over real tokens, or on an image's first.

    Args:
        run: a folder that a run left.
        client: its id.
        out: a new folder.

    Raises:
        ConfigError: the client took no part, or what it had is no model of its own.
        ModelError: the disk refuses; then nothing is left half-written.
    """
    progress = checkpoint.load(run)
    if progress is None:
        raise ConfigError(f"{run} has no finished round, so no client has a model yet; resume it first.")
    assignment = _last(progress.clients, client, run)
    _refuse_what_is_no_model(assignment)
    config = load_config(run / "config.yaml")
    scene = set_scene(config, CACHE_DIR)
    adapter = _share(scene, assignment, progress.state)
    whole = dissect(load_backbone(config.model.name, scene.task.head, assignment.dtype)[0])
    anatomy = replace(whole, unit_order=scene.anatomy.unit_order)
    model = submodel(
        anatomy,
        adapter,
        blocks=assignment.blocks,
        width=assignment.width,
        bits=assignment.weight_bits,
        sparsity=assignment.sparsity,
    )
    with replacing(out, "model") as new:
        model.save_pretrained(new)
        load_processor(config.model.name).save_pretrained(new)
        head = last_head(adapter.head, head_prefixes(assignment))
        if head:
            (new / HEAD).write_bytes(safetensors.torch.save({n: plain(t) for n, t in head.items()}))
    return Exported(folder=out, assignment=assignment)


def _last(clients: list[ClientRecord], client: int, run: Path) -> Assignment:
    mine = [row for row in clients if row.client_id == client]
    if not mine:
        raise ConfigError(
            f"Client {client} took part in no round of {run}; "
            f"{', '.join(map(str, sorted({row.client_id for row in clients})[:8]))}, ... did."
        )
    return Assignment.from_json(mine[-1].assignment)


def _refuse_what_is_no_model(assignment: Assignment) -> None:
    adapter = assignment.adapter
    if assignment.split:
        wrong = f"under a cut at {assignment.cut} it has no model of its own"
    elif isinstance(adapter, Prompt) or (isinstance(adapter, Weights) and adapter.part == "ia3"):
        wrong = "prompts and IA3's vectors lie beside a model, which PEFT loads from the run's own folder"
    else:
        return
    raise ConfigError(f"The client's last assignment was {assignment}: {wrong}; export another client.")


def _share(scene: Scene, assignment: Assignment, state: GlobalState) -> Adapter:
    """What the client would be sent of the state now, with the changes of frozen weights in its factors."""
    sent = scene.rule.send(state, site_ranks(scene.anatomy, assignment), 0)
    own = with_own_weights(scene.anatomy, assignment, state, with_own_heads(assignment, sent))
    delta = in_blocks(scene.anatomy, state.base_delta, assignment.blocks)
    return replace(own, factors=folded(Adapter(factors=own.factors), delta).factors)
