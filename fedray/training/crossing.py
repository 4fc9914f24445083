"""What a step sends across its cut, from shapes alone: the bytes of `fedray.training.boundary.Message`."""

from collections.abc import Sequence

import torch

from fedray.assignment import Assignment
from fedray.cost import Crossing
from fedray.model.codecs import bytes_per_token
from fedray.training.boundary import NUMBER_BYTES


def crossing_of(
    assignment: Assignment,
    *,
    width: int,
    dtype: torch.dtype,
    target_dims: Sequence[int],
    client_tells: bool,
    server_tells: bool,
) -> Crossing:
    """The crossing of an assignment with a cut; of a black-box client's that of one look.

    Args:
        assignment: with a cut.
        width: of a hidden state, in numbers of ``dtype``.
        dtype: of hidden states and of their gradients.
        target_dims: of each feature that the loss reads: 2 where it is one of tokens, 1 of rows. They cross
            where the loss lies on the server.
        client_tells: the client has a part of the gradient's norm to tell.
        server_tells: the server has one.
    """
    states = bytes_per_token(assignment.cut_codec, width, dtype)
    tail = states if assignment.tail else 0
    comes_down = assignment.gradient_comes_down
    sent = [] if assignment.tail else target_dims
    num_token_targets = sum(dims > 1 for dims in sent)
    num_row_targets = len(sent) - num_token_targets
    blind = assignment.is_black_box
    # It rides with the gradient; where none comes down, a tail that waits for it gets it by itself.
    norm_down = server_tells and (comes_down or assignment.tail > 0)
    last_comes_down = comes_down or norm_down or blind
    return Crossing(
        up_bytes_per_token=states + tail + NUMBER_BYTES * num_token_targets,
        up_bytes_per_row=NUMBER_BYTES * (1 + num_row_targets),  # its length is sent too
        up_bytes_per_step=NUMBER_BYTES * client_tells,
        down_bytes_per_token=tail + states * comes_down,
        down_bytes_per_row=0,
        down_bytes_per_step=NUMBER_BYTES * (norm_down + blind),
        num_messages=1 + 2 * bool(assignment.tail) + last_comes_down,
        kept=assignment.frozen_bottom,
        tail_up_bytes_per_token=tail,
    )
