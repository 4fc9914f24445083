"""The order of a model's units by salience, measured once for its weights, and kept."""

import json
from pathlib import Path
from typing import cast

import numpy as np

from fedray.model import salience, slices
from fedray.model.anatomy import dissect
from fedray.model.load import TaskHead, checkpoint_files, load_backbone
from fedray.model.salience import by_salience
from fedray.whole_file import kept, named_by
from fedray.width import Axis, UnitOrder


def unit_order_of(model: str, head: TaskHead, cache_dir: Path | None) -> UnitOrder:
    """The units of a model's axes, the most salient first, whatever dtype a run holds them in.

    Args:
        model: name or folder.
        head: that it is loaded with.
        cache_dir: where what was measured is kept, by content; None keeps nothing.

    Raises:
        ModelError: for a model that cannot be loaded.
    """
    file = None if cache_dir is None else cache_dir / f"salience-{_content(model, head)}.json"
    if file is not None and file.exists():
        return _read(file.read_text())
    order = by_salience(dissect(load_backbone(model, head, "fp32")[0]))
    if file is not None:
        kept(file, json.dumps([[axis, block, units.tolist()] for (axis, block), units in order.items()]))
    return order


def _read(text: str) -> UnitOrder:
    return {(cast(Axis, axis), block): np.array(units) for axis, block, units in json.loads(text)}


def _content(model: str, head: TaskHead) -> str:
    code = [Path(module.__file__) for module in (salience, slices) if module.__file__]
    return named_by([*code, *checkpoint_files(model)], head.encode())
