"""The frozen parts that a client holds: the stem, its blocks, and the head where the loss is its own."""

from torch import Tensor

from fedray.assignment import Assignment
from fedray.model.anatomy import Anatomy
from fedray.training.own_weights import trained_names


def weights(anatomy: Anatomy, assignment: Assignment) -> list[Tensor]:
    """The frozen tensors that a client holds for an assignment."""
    return [tensor for tensors in _frozen(anatomy, assignment).values() for tensor in tensors]


def held_bytes(anatomy: Anatomy, assignment: Assignment) -> dict[str, int]:
    """Bytes of each frozen piece that a client holds for an assignment.

    A part of a block is a piece of its own: who moves on to another part is sent all of that. So is a block
    in few bits, or a pruned one.
    """
    held = _frozen(anatomy, assignment).items()
    part = "" if assignment.width is None else f" ({assignment.width})"
    rounded = "" if assignment.weight_bits is None else f" in {assignment.weight_bits} bits"
    rounded += f" at sparsity {assignment.sparsity:g}" if assignment.sparsity else ""
    return {
        piece + part + (rounded if piece.startswith("block.") else ""): sum(
            t.numel() * t.element_size() for t in tensors
        )
        for piece, tensors in held
    }


def own_blocks(anatomy: Anatomy, assignment: Assignment) -> tuple[int, ...]:
    """The blocks that a client executes, on both sides of a cut."""
    return assignment.client_blocks(anatomy.num_blocks) if assignment.split else assignment.blocks


def has_head(assignment: Assignment) -> bool:
    """Whether the client executes the head; one with a tied weight finds that in its stem."""
    return assignment.tail > 0 or not assignment.split


def _frozen(anatomy: Anatomy, assignment: Assignment) -> dict[str, list[Tensor]]:
    """By piece; what the client trains and is sent every round is none of it.

    Of a block whose biases alone are trained the whole piece counts: the biases it came with stay there.
    """
    parameters = dict(anatomy.model.named_parameters())
    state = {**parameters, **dict(anatomy.model.named_buffers())}
    blocks = own_blocks(anatomy, assignment)
    wanted = ["stem", *(f"block.{block}" for block in blocks), *(["head"] if has_head(assignment) else [])]
    trained = frozenset(trained_names(anatomy, assignment))
    pieces = anatomy.pieces()
    held: dict[str, list[Tensor]] = {}
    for piece in wanted:
        names, own = pieces[piece], parameters.keys() & set(pieces[piece])
        if own and trained >= own:
            names, piece = tuple(name for name in names if name not in own), f"{piece} without weights"
        if names or piece in pieces:
            held[piece] = [state[name] for name in names]
    return held
