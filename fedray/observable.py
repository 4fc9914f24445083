"""What a policy may ask clients to report, and how a record writes the answers down.

`fedray.training.observables` says what the values are: one of each block, and of ``squared_loss`` and
``kept_rank`` one in all.
"""

import json
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

BlockObservable = Literal["grad_norm", "fisher", "salience"]
Observable = BlockObservable | Literal["squared_loss", "kept_rank"]
BLOCK_OBSERVABLES: tuple[BlockObservable, ...] = get_args(BlockObservable)
OBSERVABLES: tuple[Observable, ...] = (*BLOCK_OBSERVABLES, "squared_loss", "kept_rank")


def statistics_to_json(statistics: Mapping[str, Sequence[float]]) -> str:
    """Values by observable; JSON has no value that is not a number, so null stands for it."""
    return json.dumps(
        {name: [None if isnan(value) else value for value in own] for name, own in statistics.items()}
    )


def statistics_from_json(text: str) -> dict[str, NDArray[np.float64]]:
    """What `statistics_to_json` wrote, [num_blocks] each, `squared_loss` and `kept_rank` [1]."""
    if text == "{}":
        return {}  # of most runs, in every row
    return {name: np.array(values, np.float64) for name, values in json.loads(text).items()}


# Weights of what a client adds to its loss, by the configuration's names under ``training``.
LOCAL_RULES = ("proximal_mu", "tail_penalty", "exit_distillation")
