"""The smaller models that clients of a process have: made of the whole one when first asked for."""

from collections import OrderedDict

from fedray.assignment import Assignment, Lora, WeightBits
from fedray.model.anatomy import Anatomy
from fedray.model.pruned import pruned
from fedray.model.quantized import quantised
from fedray.model.slices import narrowed
from fedray.training.packed import Backbone
from fedray.width import Width


class NarrowBackbones:
    """The last few, by the model and the part of it."""

    def __init__(self, most: int = 4) -> None:
        """Args: most: that are kept; a window that moves would leave one behind every round."""
        self._most = most
        self._kept: OrderedDict[tuple[int, Width | None, WeightBits | None, float], Anatomy] = OrderedDict()

    def of(self, whole: Backbone, assignment: Assignment) -> Backbone:
        """The whole model, or the part that a width leaves of it, or either in few bits or pruned.

        Raises:
            ModelError: for a width that no model of the family can have.
        """
        width, bits, sparsity = assignment.width, assignment.weight_bits, assignment.sparsity
        if width is None and bits is None and not sparsity:
            return whole
        key = id(whole.anatomy), width, bits, sparsity
        if key not in self._kept:
            part = narrowed(whole.anatomy, width)
            if sparsity:
                part = pruned(part, sparsity)
            self._kept[key] = part if bits is None else quantised(part, bits)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        adapter = assignment.adapter
        targets = [adapter.targets] if isinstance(adapter, Lora) else []
        return Backbone.of(self._kept[key], targets)
