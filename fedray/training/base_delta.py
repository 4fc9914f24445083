"""The frozen weights moved by what a rule keeps beside them: a low-rank change of a site's product.

Where a process holds a block whole, its weights are moved once and no step takes longer. A shard has a part
of each alone: there the change is a product of its own, for everybody aboard at once.
"""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from fedray.adapter import Factors
from fedray.model.sites import moved_weights
from fedray.training.packed import Backbone
from fedray.training.shares import in_blocks

BaseDelta = Mapping[str, Factors]


def deltas_of(base_delta: BaseDelta, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By site ``b`` [O, R] with its scale, and ``a`` [R, I]."""
    return {s: (f.b.to(device) * f.scale, f.a.to(device)) for s, f in base_delta.items()}


def moved_blocks(
    backbone: Backbone, blocks: Collection[int], base_delta: BaseDelta, device: str
) -> dict[str, nn.Parameter]:
    """New weights for the sites of these blocks."""
    own = in_blocks(backbone.anatomy, base_delta, blocks)
    return moved_weights(backbone.sites, deltas_of(own, device))
