"""Prefix tuning (2101.00190): keys and values of each client's own before those of its words, in every block.

A block asks what it is given as a cache of earlier tokens, as transformers' attention does of any; both
attention kernels then read the longer keys and values as they are.

Letters of shapes: N rows, P tokens of a prefix, T tokens, G heads of keys and values, H width of one.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedray.model.anatomy import Anatomy
from fedray.model.attention import use_attention

PREFIX = "prefix_embeddings."


class Prefix:
    """What stands before the words in each block."""

    def __init__(self, rows: Mapping[int, Tensor]) -> None:
        """Args: rows: by block, [N, P, 2 G H]: of each token first its key, then its value."""
        self._rows = rows

    @property
    def num_tokens(self) -> int:
        """P."""
        return next(iter(self._rows.values())).shape[1]

    def update(self, keys: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """The prefix's own before these, which are [N, G, T, H]; a block without one gets these."""
        if block not in self._rows:
            return keys, values
        own = self._rows[block].unflatten(2, (2, keys.shape[1], keys.shape[3])).permute(2, 0, 3, 1, 4)
        before = own.to(keys.dtype)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


class _Listener:
    """Looks like an empty cache, and keeps the keys and values that pass."""

    num_tokens = 0

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        both = torch.stack([keys[0], values[0]]).permute(2, 0, 1, 3)  # [P, 2, G, H]
        self.seen[block] = both.flatten(1).float()
        return keys, values


@torch.no_grad()
def keys_and_values(anatomy: Anatomy, ids: Tensor, blocks: Iterable[int]) -> dict[int, Tensor]:
    """What a row of words leaves in these blocks, [P, 2 G H] each: what a prefix starts from.

    Args:
        anatomy: of a model with its weights.
        ids: of the words, [P].
        blocks: of the model.
    """
    use_attention(anatomy.model, "eager")
    listener, wanted = _Listener(), set(blocks)
    flow = anatomy.stem(ids[None], torch.ones(1, len(ids), dtype=torch.int64), None, listener)
    hidden = flow.hidden
    for block in range(max(wanted, default=-1) + 1):
        hidden = anatomy.block(block, hidden, flow.context)
    return {block: own for block, own in listener.seen.items() if block in wanted}
