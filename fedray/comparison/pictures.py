"""The comparison's figure: accuracy against what was spent, a line for each policy."""

from collections.abc import Sequence

import numpy as np

from fedray.comparison.contest import Finished
from fedray.comparison.measures import COSTS, Trajectory
from fedray.cost import Floats
from fedray.report.drawing import (
    ACCENT,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    byte_scale,
    figure,
    from_zero,
    joule_scale,
    second_scale,
)

_NAMES = {"energy": "energy, declared"}
_SCALES = {"virtual time": second_scale, "bytes": byte_scale, "energy": joule_scale}
_COLOURS = (ACCENT, INK, MUTED)
_POINTS = 200


def cost_figure(runs: Sequence[Finished]) -> str:
    """Medians over seeds of runs of one setting, with the range over seeds behind them.

    A panel for every cost that was declared: a fleet without watts has no joules.
    """
    by_policy: dict[str, list[Trajectory]] = {}
    for one in runs:
        if one.trial.entrant.yardstick is not None:
            continue
        by_policy.setdefault(one.trial.entrant.label, []).append(one.trajectory)
    costs = [cost for cost in COSTS if any(t.totals[cost] for found in by_policy.values() for t in found)]
    kept: list[str] = []
    with figure(2.6 + 0.16 * len(by_policy), kept.append) as drawn:
        panels = drawn.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, costs, strict=True):
            largest = max(t.totals[cost] for found in by_policy.values() for t in found)
            divisor, unit = _SCALES[cost](largest)
            for position, (policy, found) in enumerate(by_policy.items()):
                where, low, middle, high = _along(found, cost)
                colour = _COLOURS[position % len(_COLOURS)]
                axes.fill_between(
                    where / divisor, low, high, step="post", color=colour, alpha=0.12, linewidth=0
                )
                axes.plot(
                    where / divisor,
                    middle,
                    DASHES[position % len(DASHES)],
                    drawstyle="steps-post",
                    marker=MARKERS[position % len(MARKERS)],
                    markevery=(10 + 5 * position, _POINTS // 5),
                    color=colour,
                    label=policy,
                )
            axes.set_xlabel(f"{_NAMES.get(cost, cost).capitalize()}, summed ({unit})")
            from_zero(axes, np.array([largest / divisor]))
        panels[0].set_ylabel("Accuracy (share of rows)")
        panels[0].set_ylim(bottom=0)
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return kept[0]


def _along(found: Sequence[Trajectory], cost: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Places along a cost, and the least, median and most accuracy there, [places] each.

    From where every seed has been evaluated to where the first of them ends.
    """
    start = max(float(t.costs[cost][0]) for t in found if len(t.accuracy))
    end = min(t.totals[cost] for t in found)
    where = np.linspace(min(start, end), end, _POINTS)
    values = np.array([[t.at(cost, place) for place in where] for t in found if len(t.accuracy)], dtype=float)
    return where, values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
