"""Exits: depths at which a model has a head of its own, so that its leading blocks are a model, too.

DepthFL (ICLR 2023) and InclusiveFL (2202.08036) give a client as many leading blocks as it can hold, with a
head behind its last one; in DepthFL with the heads of all exits below it, which learn from each other.
"""

import math

from fedray.errors import ConfigError


def check_exits(exits: tuple[int, ...], blocks: tuple[int, ...], *, split: bool) -> None:
    """Raises ConfigError for exits that are no depths of the executed blocks, or that nothing goes with.

    Args:
        exits: depths with a head of their own.
        blocks: that are executed.
        split: whether a server runs the others.
    """
    if not exits:
        return
    listed = ", ".join(map(str, exits))
    if list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] > len(blocks):
        raise ConfigError(
            f"Exits are depths in ascending order, from 1 to the {len(blocks)} executed blocks, "
            f"found {listed}."
        )
    if split:
        raise ConfigError(
            f"Exits ({listed}) are heads of a client's own, and under a cut the server has the blocks above; "
            "drop the one or the other, or take local_loss, which trains a head at the cut."
        )
    if blocks != tuple(range(len(blocks))):
        raise ConfigError(f"Exits ({listed}) count leading blocks, and blocks {blocks} skip some.")


def has_last_head(exits: tuple[int, ...], depth: int) -> bool:
    """Whether blocks of this depth end in the model's last head, and not in that of an exit."""
    return not exits or exits[-1] < depth


def ramp(round_number: int, num_rounds: int) -> float:
    """How much of its weight distillation between exits has in a round, counted from 1.

    ``exp(-5 (1 - t / T)^2)`` of DepthFL's code, with t = round - 1 up to T = ``num_rounds``.
    """
    phase = 1.0 - min(round_number - 1, num_rounds) / num_rounds
    return math.exp(-5.0 * phase * phase)
