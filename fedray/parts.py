"""Which parts of the model an assignment may name, and which the processes beside the server hold.

Where the global model is evaluated by a sweep over the server's shards, nobody needs the blocks that the menu
leaves to the server, and no process loads them.
"""

from collections.abc import Collection

from fedray.assignment import Assignment, Dtype
from fedray.config import Config
from fedray.errors import ConfigError, PolicyError


def held_pieces(config: Config, num_blocks: int) -> tuple[str, ...] | None:
    """Names of the held pieces ("stem", "block.0", ..., "head"); None for all of the model.

    Raises:
        ConfigError: some client keeps each of the blocks, so that nothing would be left out.
    """
    blocks = _held_blocks(config, num_blocks)
    if blocks is None:
        return None
    if len(blocks) == num_blocks:
        raise ConfigError(
            f"server.evaluation: sweep keeps the whole backbone out of every process, and menu.cuts up to "
            f"{max(config.menu.cuts)} with menu.tails up to {max(config.menu.tails)} are all {num_blocks} "
            "blocks; lower the one or the other, or set server.evaluation: whole."
        )
    return ("stem", *(f"block.{block}" for block in blocks), "head")


def refuse_absent_blocks(config: Config, num_blocks: int, assignment: Assignment) -> None:
    """Raises PolicyError for an assignment of a policy's own that runs blocks which no process loads."""
    held = _held_blocks(config, num_blocks)
    if held is None:
        return
    absent = [block for block in assignment.client_blocks(num_blocks) if block not in held]
    if absent:
        raise PolicyError(
            f"The policy gave {assignment}, and with server.evaluation: sweep no client's process has block "
            f"{absent[0]}: the menu's clients keep {', '.join(map(str, held))}; make it from entries of "
            "view.menu, or set server.evaluation: whole."
        )


def refuse_another_models(num_blocks: int, dtypes: Collection[Dtype], assignment: Assignment) -> None:
    """Raises PolicyError for an assignment of a policy's own that is of no model like this run's.

    Args:
        num_blocks: of the model.
        dtypes: that its weights are held in.
        assignment: a policy's own, or from the menu.
    """
    if assignment.dtype not in dtypes:
        wrong = f"its weights are held in {', '.join(dtypes)}"
    elif assignment.split and assignment.cut + assignment.tail >= num_blocks:
        wrong = (
            f"cut {assignment.cut} and tail {assignment.tail} leave the server none of {num_blocks} blocks"
        )
    elif assignment.split and assignment.trained and len(assignment.trained) != num_blocks:
        wrong = f"its {num_blocks} blocks are given {len(assignment.trained)} ranks"
    elif max(assignment.blocks, default=0) >= num_blocks:
        wrong = f"block {max(assignment.blocks)} is asked for of {num_blocks}, counted from 0"
    else:
        return
    raise PolicyError(
        f"The policy gave {assignment}, which does not fit this run's model: {wrong}; make it from entries "
        "of view.menu."
    )


def refuse_unordered(config: Config, assignment: Assignment) -> None:
    """Raises PolicyError for a policy's own part by salience, of which no order was measured."""
    width = assignment.width
    if width is not None and width.window == "salient" and config.menu.width_window != "salient":
        raise PolicyError(
            f"The policy gave {assignment}, and this run measures no order of the model's units by salience; "
            "set menu.width_window: salient, or take another window."
        )


def evaluated_span(config: Config, num_blocks: int) -> tuple[int, int] | None:
    """The blocks that the server runs in an evaluation, the first and one past the last; None for none.

    The lowest cut and the shortest tail leave as much as can be to the server.
    """
    if not config.menu.cuts or config.server.evaluation == "whole":
        return None
    return min(config.menu.cuts), num_blocks - min(config.menu.tails)


def _held_blocks(config: Config, num_blocks: int) -> list[int] | None:
    if evaluated_span(config, num_blocks) is None:
        return None
    top = num_blocks - max(config.menu.tails)
    return [block for block in range(num_blocks) if block < max(config.menu.cuts) or block >= top]
