"""The server's part of a pass that trains nothing: rows divided among its shards, up through some blocks.

All shards sweep at once, one without a row with its ghost.

Letters of shapes: N rows, T tokens, D hidden width.
"""

import torch
from torch import Tensor

from fedray.assignment import Attention
from fedray.model.sites import StackedFactors
from fedray.server.sweep import Ride, Sweep, Walk
from fedray.training.parted import Span
from fedray.training.train import Workshop

Part = tuple[Tensor, Tensor] | None  # hidden states [N, T, D] and their mask [N, T] of one shard's rows


def divided(hidden: Tensor, mask: Tensor, num_shards: int) -> list[Part]:
    """Rows as evenly as can be, in their order; the last shards get none where rows are fewer."""
    parts = zip(hidden.tensor_split(num_shards), mask.tensor_split(num_shards), strict=True)
    return [(rows, own) if len(rows) else None for rows, own in parts]


@torch.no_grad()
def passed(walk: Walk, span: Span, part: Part, device: str) -> Tensor | None:
    """One shard's rows through the span, [N, T, D] in plain memory; None without a row."""
    if part is None:
        walk([], span.first)
        return None
    hidden, mask = part
    ride = Ride(
        first=span.first,
        end=span.end,
        hidden=hidden.to(device),
        mask=mask.to(device),
        clients=1,
        factors={
            site: StackedFactors(
                a=f.a[None].to(device),
                b=f.b[None].to(device),
                scale=torch.full((1, 1, 1), f.scale, device=device),
            )
            for site, f in span.factors.items()
        },
    )
    walk([ride], span.first)
    assert ride.exit is not None, "who brings no batch leaves"
    return ride.exit.cpu()


class PassingHere:
    """`fedray.training.parted.Middle` in this process: shard by shard, as ZeRO shards would do it."""

    def __init__(self, workshop: Workshop, num_shards: int, attention: Attention) -> None:
        """The blocks are those of the workshop that evaluates."""
        self._walk = Sweep(workshop.evaluated, workshop.task, attention, recompute=False, ghost=False)
        self._num_shards, self._device = num_shards, workshop.device

    def __call__(self, span: Span, hidden: Tensor, mask: Tensor) -> Tensor:
        """See `fedray.training.parted.Middle`."""
        parts = [part for part in divided(hidden, mask, self._num_shards) if part is not None]
        answers = [passed(self._walk, span, part, self._device) for part in parts]
        return torch.cat([rows for rows in answers if rows is not None]).to(hidden.device)
