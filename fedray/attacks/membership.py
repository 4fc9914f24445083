"""Membership inference: whether a row was among those that trained the global model, from its loss.

Rows that were trained on tend to have smaller losses; who knows the model and a row's label says "member"
below a threshold (2017's loss attack, 1709.01604). Its strength is the area under the ROC curve, 0.5 for
guessing, and the share of members that it names where it is wrong about one row in a hundred (2112.03570).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedray.adapter import Adapter
from fedray.cost import Floats
from fedray.errors import ConfigError
from fedray.training.data import Rows
from fedray.training.evaluate import evaluate_rows, evaluation_chunks, in_order
from fedray.training.train import Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What the attack comes to.

    Attributes:
        auc: area under the ROC curve: the chance that a member scores above another row.
        true_positive_rate: of members, at ``false_positive_rate`` of the others.
        num_members: rows that trained; ``num_others`` that did not.
    """

    auc: float
    true_positive_rate: float
    false_positive_rate: float
    num_members: int
    num_others: int


def by_loss(workshop: Workshop, adapter: Adapter, members: Rows, others: Rows) -> Membership:
    """The loss attack on a global adapter.

    Args:
        workshop: with the model and the rows.
        adapter: the global one.
        members: rows of the pool that trained it.
        others: rows of the pool that did not.

    Raises:
        ConfigError: for no rows on one side.
    """
    return strength(-losses_of(workshop, adapter, members), -losses_of(workshop, adapter, others))


def strength(members: Floats, others: Floats, false_positive_rate: float = 0.01) -> Membership:
    """Of scores that say "member" where they are high; ties count half.

    Raises:
        ConfigError: for no scores on one side.
    """
    if not len(members) or not len(others):
        raise ConfigError(
            f"Membership is told of members and of others, found {len(members)} and {len(others)} rows."
        )
    every = np.sort(others)
    below = np.searchsorted(every, members, side="left")
    equal = np.searchsorted(every, members, side="right") - below
    auc = float((below + 0.5 * equal).mean() / len(others))
    # The lowest threshold above which no more than this share of the others lies.
    allowed = int(np.floor(false_positive_rate * len(others)))
    threshold = every[len(every) - 1 - allowed]
    return Membership(
        auc=auc,
        true_positive_rate=float((members > threshold).mean()),
        false_positive_rate=float((others > threshold).mean()),
        num_members=len(members),
        num_others=len(others),
    )


def losses_of(workshop: Workshop, adapter: Adapter, rows: Rows) -> Floats:
    """Of each row under an adapter, [rows]; empty for no rows."""
    if not len(rows):
        return np.zeros(0)
    chunks: Sequence[Rows] = evaluation_chunks(workshop.pool.lengths, rows)
    outputs = [evaluate_rows(workshop, adapter, chunk) for chunk in chunks]
    return np.array([float(output["loss"]) for output in in_order(rows, chunks, outputs)])
