"""How well fedray's price of a step tells on-phone training times of layers that its rates never saw.

The table has seconds of one training batch of a net made of a layer plus an output layer, on three phones.
A layer's operations are counted by hand here; a phone's two rates are fitted to two kinds of layers and the
third is predicted.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from fedray.cost import Floats, Roofline

BYTES = 4  # of a number
_STARTS = (21.0, 23.0, 25.0)  # of the fit, logarithms of FLOP/s


def operations(layer: str, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """FLOPs and bytes of each operation of a step, [rows, operations] each.

    A product is forward, to its weights and to its input; reading what it multiplies, writing its result.
    An optimizer reads a weight and its gradient and writes the weight.

    Args:
        layer: ``output`` (dense), ``lstm`` or ``embedding``.
        sizes: in, out, batch and length, [rows, 4].
    """
    wide_in, wide_out, batch, length = sizes.T.astype(np.float64)
    tokens = batch * length
    match layer:
        case "output":
            weights = wide_in * wide_out
            ops = 3 * [(2 * tokens * weights, weights + tokens * (wide_in + wide_out))]
        case "lstm":
            into, around = 4 * wide_out * wide_in, 4 * wide_out * wide_out
            weights = into + around
            ops = 3 * [(2 * tokens * into, into + tokens * (wide_in + 4 * wide_out))]
            # What goes around is multiplied step by step, and its weights are read each time.
            ops += 3 * [(2 * tokens * around, around * length + tokens * 5 * wide_out)]
            ops += [(30 * tokens * wide_out, 20 * tokens * wide_out)]
        case _:
            weights = wide_in * wide_out
            # Rows are looked up, and a gradient of the whole table is written.
            ops = [(0 * tokens, 2 * tokens * wide_out), (0 * tokens, weights + 2 * tokens * wide_out)]
    ops += [(2 * weights, 3 * weights)]
    flops, numbers = (np.stack(column, axis=1) for column in zip(*ops, strict=True))
    return flops, BYTES * numbers


def predicted(flops: Floats, moved_bytes: Floats, rates: Floats) -> Floats:
    """Seconds of each row's step, [rows], by the price model; ``rates`` are FLOP/s and bytes/s."""
    seconds: Floats = np.maximum(flops / rates[0], moved_bytes / rates[1]).sum(axis=1)
    return seconds


def fitted(flops: Floats, moved_bytes: Floats, seconds: Floats, weight: Floats) -> Floats:
    """The rates with the least mean absolute logarithm of predicted over measured."""

    def loss(logarithms: Floats) -> float:
        off = np.abs(np.log(predicted(flops, moved_bytes, np.exp(logarithms)) / seconds))
        return float(np.average(off, weights=weight))

    found = [minimize(loss, (start, 21.0), method="Nelder-Mead") for start in _STARTS]
    rates: Floats = np.exp(min(found, key=lambda one: one.fun).x)
    return rates


def agrees_with_fedray(flops: Floats, moved_bytes: Floats, rates: Floats) -> bool:
    """Whether fedray's own look-up gives the seconds of a few of these rows."""
    some = np.linspace(0, len(flops) - 1, 20).astype(int)
    by_table = [
        Roofline(flops[row], moved_bytes[row]).seconds(*(np.array([rate]) for rate in rates))[0]
        for row in some
    ]
    return np.allclose(by_table, predicted(flops[some], moved_bytes[some], rates), rtol=1e-9)


def phones(file: Path) -> None:
    """Print the errors of each phone and each kind of layer."""
    table = pq.read_table(file).to_pydict()
    columns = {name: np.array(values) for name, values in table.items()}
    kinds = sorted(set(table["layer"]))
    print("held out: rates fitted to the other two kinds; seen: all three kinds, every second row held out")
    print(f"{'phone':24}{'layer':11}{'held out':>17}{'seen':>17}{'predicted / measured':>23}")
    print(f"{'':35}{'median':>9}{'90 %':>8}{'median':>9}{'90 %':>8}{'held out, median':>23}")
    for phone in sorted(set(table["phone"])):
        cells = {}
        for kind in kinds:
            of_kind = (columns["phone"] == phone) & (columns["layer"] == kind)
            sizes = [columns[name][of_kind] for name in ("in_size", "out_size", "batch_size", "seq_len")]
            cells[kind] = (
                *operations(kind, np.stack(sizes, axis=1)),
                columns["train_s"][of_kind].astype(float),
            )
        everything = _fit_to(cells, kinds, every=2)
        for kind in kinds:
            rates = _fit_to(cells, [other for other in kinds if other != kind])
            flops, moved, seconds = cells[kind]
            assert agrees_with_fedray(flops, moved, rates)
            ratio = predicted(flops, moved, rates) / seconds
            seen = predicted(flops[1::2], moved[1::2], everything) / seconds[1::2]
            errors = [np.quantile(np.abs(r - 1), q) for r in (ratio, seen) for q in (0.5, 0.9)]
            shown = "".join(f"{error:{width}.0%}" for error, width in zip(errors, (9, 8, 9, 8), strict=True))
            print(f"{phone:24}{kind:11}{shown}{np.median(ratio):23.2f}", flush=True)


def _fit_to(cells: dict[str, tuple[Floats, Floats, Floats]], kinds: list[str], every: int = 1) -> Floats:
    """Rates of some kinds' rows, each kind counting alike whatever its number of operations."""
    width = max(cells[kind][0].shape[1] for kind in kinds)
    parts = []
    for kind in kinds:
        flops, moved, seconds = (column[::every] for column in cells[kind])
        pad = ((0, 0), (0, width - flops.shape[1]))
        weight = np.full(len(seconds), 1 / len(seconds))
        parts.append((np.pad(flops, pad), np.pad(moved, pad), seconds, weight))
    return fitted(*(np.concatenate(column) for column in zip(*parts, strict=True)))
