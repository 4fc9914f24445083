"""What a configuration puts on offer: the menu over a model, and the declared server above the cuts."""

from collections.abc import Mapping, Sequence

from fedray.assignment import Assignment, Dtype
from fedray.config import Config
from fedray.config.privacy_sections import AttacksSection
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu
from fedray.model.anatomy import Anatomy
from fedray.parts import held_pieces
from fedray.trained import Lora, Weights
from fedray.training.task import Task
from fedray.virtual_server import VirtualServer


def targets_of(config: Config, anatomy: Anatomy) -> tuple[str, ...]:
    """The adapted linears: the configuration's, or the family's usual ones."""
    return tuple(config.menu.target_modules or anatomy.family.targets)


def menu_of(config: Config, anatomy: Anatomy, *, train_a: bool) -> tuple[Assignment, ...]:
    """The assignments that the configuration's knobs allow. Raises ConfigError, ModelError."""
    menu, training = config.menu, config.training
    targets = targets_of(config, anatomy)
    anatomy.sites(0, targets)  # a target that names nothing is refused before any row is read
    return build_menu(
        Grid(
            num_blocks=anatomy.num_blocks,
            targets=targets,
            ranks=menu.ranks,
            depths=menu.depths,
            tunings=menu.tunings,
            prompt_tokens=menu.prompt_tokens,
            widths=menu.widths,
            width_axes=menu.width_axes,
            width_window=menu.width_window,
            recompute=menu.recompute,
            int8_activations=menu.int8_activations,
            dtypes=menu.dtypes,
            sparsities=menu.sparsities,
            weight_bits=tuple(None if bits == "all" else bits for bits in menu.weight_bits),
            batch_sizes=menu.per_device_train_batch_size,
            scale=menu.lora_scale,
            train_a=train_a,
            head_only=menu.head_only,
            exits=menu.exits,
            perturbations=menu.perturbations,
            cuts=menu.cuts,
            tails=menu.tails,
            cut_codecs=menu.cut_codecs,
            local_loss=menu.local_loss,
            whole=menu.whole,
            up_codecs=menu.up_codecs,
            down_codecs=menu.down_codecs,
            num_epochs=training.num_train_epochs,
            max_steps=training.max_steps,
        )
    )


def refuse_heads(config: Config, task: Task) -> None:
    """Raises ConfigError for heads of clients' own where the task trains none."""
    if task.head != "causal_lm":
        return
    if config.menu.head_only:
        raise ConfigError(
            f"menu.head_only offers a trained head alone, and the task {config.task.name!r} trains none: a "
            "causal LM keeps the model's own; drop it or choose a classification task."
        )
    if config.menu.exits:
        raise ConfigError(
            f"menu.exits puts trained heads behind blocks, and the task {config.task.name!r} trains none: a "
            "causal LM keeps the model's own; drop them or choose a classification task."
        )


def refuse_attacks(config: Config, anatomy: Anatomy, menu: Sequence[Assignment], num_labels: int) -> None:
    """Raises ConfigError for attacks on updates that have nothing to look for, or nothing to look with."""
    asked = config.attacks
    if asked.labels and not num_labels:
        raise ConfigError(
            f"attacks.labels infers labels, and the task {config.task.name!r} has no classes; drop it, or "
            "choose a classification task."
        )
    if not asked.updates:
        return
    if anatomy.takes_text:
        _refuse_to_look_for_words(config, anatomy, menu)
    elif config.menu.cuts:
        raise ConfigError(
            "attacks.updates searches for images through the model that a client trained, and under "
            "menu.cuts a server trains a part of it; drop one of the two."
        )


def _refuse_to_look_for_words(config: Config, anatomy: Anatomy, menu: Sequence[Assignment]) -> None:
    if config.attacks.search_steps != AttacksSection().search_steps:
        raise ConfigError(
            "attacks.search_steps are of a search for images, and words are found by arithmetic; drop it."
        )
    if not any(_tells_of_first_block(assignment) for assignment in menu):
        raise ConfigError(
            "attacks.updates finds words by what the first block's weights or factors learn, and none of the "
            f"menu's {len(menu)} assignments trains these; give menu.depths: [all] with ranks or "
            "tunings: [full], or drop it."
        )
    held = held_pieces(config, anatomy.num_blocks)
    if held is not None and "block.0" not in held:
        raise ConfigError(
            "attacks.updates finds words by what the first block reads, and with server.evaluation: sweep no "
            "process beside the server's has it; give menu.cuts above 0, or drop it."
        )


def _tells_of_first_block(assignment: Assignment) -> bool:
    own, trained = assignment.adapter, assignment.trained
    tells = isinstance(own, Lora) or (isinstance(own, Weights) and own.part == "all")
    return tells and bool(trained) and trained[0] and (assignment.split or assignment.blocks[0] == 0)


def server_of(config: Config, anatomies: Mapping[Dtype, Anatomy]) -> VirtualServer | None:
    """What the configuration declares above the cuts."""
    if not config.menu.cuts:
        return None
    # Beside each other lie the blocks of every dtype that is asked for.
    sizes = [anatomy.piece_bytes() for anatomy in anatomies.values()]
    num_blocks = next(iter(anatomies.values())).num_blocks
    blocks = [sum(size[f"block.{i}"] for size in sizes) for i in range(num_blocks)]
    blocks[-1] += sum(size["head"] for size in sizes)
    given = config.server
    return VirtualServer(
        num_shards=given.num_shards,
        flops_per_s=given.flops_per_s,
        memory_bytes=given.memory_bytes,
        interconnect_bps=given.interconnect_bps,
        watts=given.watts,
        min_riders=given.min_riders,
        window_seconds=given.window_seconds,
        mode=given.mode,
        order=given.order,
        block_bytes=tuple(blocks),
    )
