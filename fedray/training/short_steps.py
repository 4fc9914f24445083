"""The same step over fewer blocks: what a trace of a deep model runs in place of the whole.

Of a block its rank matters, and under a cut the side it is on; of the other side's blocks nothing but what
crosses the cut. So menu entries of unlike depths and cuts share the few steps that they shorten to.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, assert_never

from fedray.activations import blocks_in_8_bits
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.trained import Prompt, Weights

Side = Literal["whole", "client", "server"]


def side_of(assignment: Assignment) -> Side:
    """Whose step a client's is."""
    return "client" if assignment.split else "whole"


def blocks_on(side: Side, assignment: Assignment, num_blocks: int) -> Sequence[int]:
    """The blocks that a side runs, in order, of a model with so many."""
    match side:
        case "whole":
            return assignment.blocks
        case "client":
            return assignment.client_blocks(num_blocks)
        case "server":
            return assignment.server_blocks(num_blocks)
        case _:
            assert_never(side)


def kinds_of(side: Side, assignment: Assignment, num_blocks: int) -> tuple[tuple[bool, bool, int], ...]:
    """Of each block that a side runs whether it lies above the cut, or has a head behind it; and its rank.

    Between the two, whether its activations are kept in 8 bits.
    """
    ranks = _ranks(assignment, num_blocks)
    if side == "whole":
        rounded = blocks_in_8_bits(assignment.first_trained_block, assignment.int8_activations)
        return tuple(
            (depth in assignment.exits, depth - 1 in rounded, rank)
            for depth, rank in enumerate(ranks, start=1)
        )
    own = blocks_on(side, assignment, num_blocks)
    return tuple((side == "client" and block >= assignment.cut, False, ranks[block]) for block in own)


def shortened(side: Side, assignment: Assignment, num_blocks: int, positions: Sequence[int]) -> Assignment:
    """An assignment in which a side runs only the blocks at these positions among its own."""
    ranks = _ranks(assignment, num_blocks)
    if side == "whole":
        # Ranks go by place: a submodel's blocks need not be the leading ones.
        places = {position: place for place, position in enumerate(positions, start=1)}
        exits = tuple(places[depth - 1] for depth in assignment.exits)
        rounded = blocks_in_8_bits(assignment.first_trained_block, assignment.int8_activations)
        plain = replace(assignment, exits=(), int8_activations=0)
        short = _with_ranks(plain, len(positions), 0, [ranks[position] for position in positions])
        return replace(short, exits=exits, int8_activations=sum(p in rounded for p in positions))
    own = blocks_on(side, assignment, num_blocks)
    kept = [own[position] for position in positions]
    kept_ranks = [ranks[block] for block in kept]
    match side:
        case "client":
            cut = sum(block < assignment.cut for block in kept)
            theirs = [0] * (num_blocks - len(kept))
            return _with_ranks(
                assignment, cut, len(kept) - cut, [*kept_ranks[:cut], *theirs, *kept_ranks[cut:]]
            )
        case "server":
            tail = min(assignment.tail, 1)
            below = [0] * (num_blocks - len(kept) - tail)
            if not assignment.frozen_bottom:
                below[-1] = 1
            # Recomputation is the client's own.
            plain = replace(assignment, recompute=False)
            return _with_ranks(plain, len(below), tail, [*below, *kept_ranks, *[0] * tail])
        case _:
            assert_never(side)


def _with_ranks(assignment: Assignment, cut: int, tail: int, ranks: Sequence[int]) -> Assignment:
    adapter = assignment.adapter
    match adapter:
        case Lora():
            adapter = replace(adapter, ranks=tuple(ranks)) if any(ranks) else HeadOnly()
        case Weights():
            adapter = replace(adapter, trained=tuple(rank > 0 for rank in ranks))
        case Prompt() | HeadOnly():
            pass
        case _:
            assert_never(adapter)
    return replace(assignment, blocks=tuple(range(cut)), tail=tail, adapter=adapter)


def _ranks(assignment: Assignment, num_blocks: int) -> tuple[int, ...]:
    match assignment.adapter:
        case Lora(ranks=ranks):
            return ranks
        case Weights(trained=trained):
            return tuple(int(own) for own in trained)
        case Prompt():
            return (1,) * assignment.cut
        case HeadOnly():
            return (0,) * (num_blocks if assignment.split else assignment.cut)
        case _:
            assert_never(assignment.adapter)
