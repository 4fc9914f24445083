"""What a selection knows of some clients of a large fleet: their ids, ascending, and columns beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Known = Mapping[str, NDArray[Any]]
"""``ids``, and columns of the same length by name; a part of a policy's state."""


def learnt(known: Known, news: Known) -> Known:
    """Both together; of a client in both, the news; of one that is in the news twice, the later.

    Args:
        known: empty at first.
        news: with the columns of ``known``, in any order of clients.
    """
    ids = np.concatenate([known["ids"], news["ids"]]) if known else news["ids"]
    found, from_the_end = np.unique(ids[::-1], return_index=True)
    newest = len(ids) - 1 - from_the_end
    columns = {}
    for name in news:
        values = np.concatenate([known[name], news[name]]) if known else news[name]
        columns[name] = values[newest]
    return {**columns, "ids": found}


def look_up(known: Known, name: str, ids: NDArray[np.int64], absent: float) -> NDArray[np.float64]:
    """A column of these clients, [ids], and ``absent`` of those nothing is known of."""
    found = np.full(len(ids), absent)
    if not known:
        return found
    at = np.minimum(np.searchsorted(known["ids"], ids), len(known["ids"]) - 1)
    there = known["ids"][at] == ids
    found[there] = known[name][at[there]]
    return found
