"""Where a client's part of a tensor lies in the whole, by flat name: its first ranks, or its place."""

from torch import Tensor

from fedray.adapter import WEIGHTS, Adapter
from fedray.aggregation.coverage_mean import entries_at


def add_at(total: Tensor, change: Tensor, name: str, own: Adapter) -> None:
    """Add a client's part to the whole.

    Args:
        total: changed in place.
        change: of the shape that the client has.
        name: as `Adapter.tensors` has it.
        own: the client's adapter, which says what is a factor and where parts lie.
    """
    site, _, side = name.rpartition(".")
    if site in own.factors and side == "lora_A":
        total[: len(change)] += change
    elif site in own.factors:
        total[:, : change.shape[1]] += change
    else:
        place = own.places.get(name.removeprefix(WEIGHTS))
        if place is None:
            total += change
        else:
            total[entries_at(total, place)] += change
