"""Which units of a model matter most, by the size of the weights that belong to them."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from fedray.model.anatomy import Anatomy
from fedray.model.slices import axes_of, block_of, num_units, units_of
from fedray.width import Axis, UnitOrder


def by_salience(anatomy: Anatomy) -> UnitOrder:
    """The units of every axis, the most salient first; of equals the first.

    A unit's salience is the Euclidean norm of all weights that belong to it: of a feed-forward unit what
    goes in, its bias and what comes out; of a head (of grouped queries a whole group) its queries, keys,
    values and what reads them; of a width inside heads that dimension of each; of a hidden unit its row or
    column of every tensor of the model, embeddings too. The order of RaFFM (2310.00247), -style: read was
    its abstract.

    Args:
        anatomy: of a model with its weights.
    """
    squares: dict[tuple[Axis, int], NDArray[np.float64]] = defaultdict(lambda: np.zeros(1))
    for name, tensor in anatomy.model.named_parameters():
        block = block_of(anatomy, name)
        values = np.square(tensor.detach().double().cpu().numpy())
        for place, axis in enumerate(axes_of(anatomy, name, tensor)):
            of_entries = values.sum(axis=tuple(other for other in range(values.ndim) if other != place))
            for unit_axis, units in units_of(anatomy, axis).items():
                key = unit_axis, -1 if unit_axis == "hidden" else block
                found = np.bincount(units, weights=of_entries, minlength=num_units(anatomy, unit_axis))
                squares[key] = squares[key] + found
    return {key: np.argsort(-found, kind="stable") for key, found in squares.items()}
