"""Hidden states of rows at every cut of the pretrained model: what a client would send up there.

Letters of shapes: X real tokens, D hidden width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import Adapter
from fedray.errors import ConfigError
from fedray.model.anatomy import Anatomy
from fedray.model.sites import alone
from fedray.training.data import Encoded, Rows
from fedray.training.evaluate import evaluation_chunks
from fedray.training.packed import Backbone, Course, Passage


@dataclass(frozen=True, slots=True, kw_only=True)
class ByDepth:
    """Of some rows.

    Attributes:
        states: hidden states by cut, from 0 to all blocks, [X, D] each, row by row.
        inputs: what went in: token ids [X], or images [rows, C, H, W].
        rows: in the order of ``states``.
    """

    states: Mapping[int, Tensor]
    inputs: Tensor
    rows: Rows


@torch.no_grad()
def by_depth(anatomy: Anatomy, pool: Encoded, rows: Rows, adapter: Adapter | None = None) -> ByDepth:
    """Run the rows through the model, with LoRA factors if given. Raises ConfigError for no rows."""
    if not len(rows):
        raise ConfigError("An attack needs rows to learn from and rows to find, and one of them has none.")
    blocks = tuple(range(anatomy.num_blocks))
    course = Course(blocks=blocks, exits=tuple(block + 1 for block in blocks))
    factors = {} if adapter is None else adapter.factors
    targets = {site.rpartition(".")[2] for site in factors}
    backbone = Backbone.of(anatomy, [tuple(targets)] if targets else [])
    installed = {site: alone(own) for site, own in factors.items()}
    states: dict[int, list[Tensor]] = {cut: [] for cut in range(len(blocks) + 1)}
    inputs, order = [], []
    for some in evaluation_chunks(pool.lengths, rows):
        batch = pool.batch(some, int(pool.lengths[some].max()))
        real, own = batch["attention_mask"].bool(), batch[anatomy.family.inputs]
        flow = anatomy.stem(own, batch["attention_mask"])
        passage = Passage(backbone, course, installed, flow.context, None)
        for cut, hidden in enumerate([flow.hidden, *passage.depths(flow.hidden)]):
            states[cut].append(hidden[real].float())
        inputs.append(own[real] if anatomy.takes_text else own)
        order += some.tolist()
    return ByDepth(
        states={cut: torch.cat(parts) for cut, parts in states.items()},
        inputs=torch.cat(inputs),
        rows=np.array(order),
    )
