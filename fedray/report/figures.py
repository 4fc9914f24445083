"""The report's figures, each as one `data:` address of an SVG picture."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedray.record import ClientRecord, RoundRecord
from fedray.report.drawing import (
    ACCENT,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    byte_scale,
    figure,
    from_zero,
    grey,
    ink_on,
    joule_scale,
    second_scale,
)
from fedray.report.tallies import OUTCOMES, Curve, DeviceClass, Given, Spent, outcome_counts

# More bars than this are not seen apart on a page: rounds are then summed in groups.
MAX_BARS = 60
# A segment narrower than this share of the bar has no room for its letter.
_NARROW = 0.045
# A bar longer than that leaves no room for its value beside it.
_ROOM_BESIDE = 0.8
_OUTCOME_LOOKS = (("0.88", ""), ("0.70", "///"), ("1.0", "..."), ("0.45", "xxx"), ("0.10", ""))


def progress_figure(curves: Sequence[Curve], spent: Spent) -> str:
    """Accuracy against virtual time, bytes on the wire and energy, one panel each."""
    costs = [
        ("Virtual time", spent.virtual_seconds, second_scale),
        ("Bytes on the wire", spent.wire_bytes, byte_scale),
        ("Energy, declared", spent.joules, joule_scale),
    ]
    if spent.provision_bytes[-1]:
        # Weights that move once can be most of all bytes; what moves every round is then seen alone.
        costs.insert(2, ("Bytes without provision", spent.every_round_bytes, byte_scale))
    lines = 1 if len(costs) == 3 else 2
    kept: list[str] = []
    with figure(0.4 + 2.2 * lines, kept.append) as drawn:
        panels = drawn.subplots(lines, len(costs) // lines, sharey=True).ravel()
        for axes, (label, cost, scale) in zip(panels, costs, strict=True):
            divisor, unit = scale(float(cost[-1]))
            for curve, dash, marker in zip(curves, DASHES, MARKERS, strict=False):
                points = cost[list(curve.rounds)] / divisor
                axes.plot(
                    points,
                    curve.accuracy,
                    dash,
                    marker=marker,
                    color=ACCENT,
                    label=curve.split,
                    clip_on=False,
                )
            axes.set_xlabel(f"{label}, summed ({unit})")
            from_zero(axes, cost / divisor)
        for axes in panels[:: len(costs) // lines]:
            _accuracy_axis(axes, [value for curve in curves for value in curve.accuracy])
        if len(curves) > 1:
            drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(curves))
    return kept[0]


def _accuracy_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_ylabel("Accuracy (share of rows)")
    finite = [value for value in values if np.isfinite(value)]
    axes.set_ylim(0, min(1.0, 1.08 * max(finite)) if finite and max(finite) > 0 else 1.0)


def mix_figure(givens: Sequence[Given], classes: Sequence[DeviceClass]) -> str:
    """A bar per device class, parted by assignment; segments carry the table's letters."""
    asked = [c for c in classes if c.records]
    kept: list[str] = []
    with figure(0.75 + 0.42 * len(asked), kept.append) as drawn:
        axes = drawn.subplots()
        for row, device_class in enumerate(asked):
            left = 0.0
            for position, one in enumerate(givens):
                share = sum(r.device_class == device_class.name for r in one.records) / len(
                    device_class.records
                )
                _segment(axes, row, left, share, one, grey(position, len(givens)))
                left += share
        axes.set_yticks(range(len(asked)), [f"{c.name}  (n = {len(c.records)})" for c in asked])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("Share of the class's client-rounds (%)")
        if any(one.assignment.recompute for one in givens):
            handles = [Patch(facecolor="white", edgecolor=INK, hatch="////", label="with recompute")]
            drawn.legend(handles=handles, loc="outside upper right")
    return kept[0]


def _segment(axes: Axes, row: int, left: float, share: float, one: Given, shade: str) -> None:
    if not share:
        return
    hatch = "////" if one.assignment.recompute else ""
    # Twice: an edge and a hatch share one color, and the hatch must stand out on dark greys too.
    axes.barh(
        row, share, left=left, height=0.66, color=shade, edgecolor=ink_on(shade), hatch=hatch, linewidth=0
    )
    axes.barh(row, share, left=left, height=0.66, color="none", edgecolor=INK, linewidth=0.6)
    if share >= _NARROW:
        around = {"boxstyle": "round,pad=0.18", "facecolor": shade, "edgecolor": "none"}
        axes.text(
            left + share / 2,
            row,
            one.code,
            ha="center",
            va="center",
            color=ink_on(shade),
            bbox=around,
            weight="bold",
        )


def cuts_figure(classes: Sequence[DeviceClass]) -> str:
    """Left: a bar per device class, parted by cut. Right: the share of its riders' time spent waiting."""
    found = sorted({r.cut for c in classes for r in c.records if r.cut is not None})
    kept: list[str] = []
    with figure(0.85 + 0.42 * len(classes), kept.append) as drawn:
        cut_axes, wait_axes = drawn.subplots(
            1, 2, sharey=True, width_ratios=(1.6, 1.0), gridspec_kw={"wspace": 0.08}
        )
        for row, device_class in enumerate(classes):
            left, counts = 0.0, Counter(r.cut for r in device_class.records)
            for position, cut in enumerate((*found, None)):
                share = counts[cut] / len(device_class.records)
                # A whole model is hatched: it stays on the client and is no deep cut.
                shade, hatch = ("1.0", "////") if cut is None else (grey(position, len(found)), "")
                _cut_segment(cut_axes, (row, left, share), shade, hatch, "" if cut is None else str(cut))
                left += share
            _waiting_bar(wait_axes, row, [r for r in device_class.records if r.cut is not None])
        cut_axes.set_yticks(range(len(classes)), [f"{c.name}  (n = {len(c.records)})" for c in classes])
        cut_axes.invert_yaxis()
        for axes, label in ((cut_axes, "the class's client-rounds"), (wait_axes, "riders' virtual time")):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xlabel(f"Share of {label} (%)")
        wait_axes.set_title("Waiting for the server")
        hatched = any(r.cut is None for c in classes for r in c.records)
        cut_axes.set_title("Cut; hatched: whole model" if hatched else "Cut")
    return kept[0]


def _cut_segment(axes: Axes, place: tuple[int, float, float], shade: str, hatch: str, label: str) -> None:
    row, left, share = place
    if not share:
        return
    (bar,) = axes.barh(
        row, share, left=left, height=0.66, color=shade, edgecolor=INK, hatch=hatch, linewidth=0.6
    )
    bar.set_clip_on(False)  # the last one ends where the axis does
    if label and share >= _NARROW:
        axes.text(left + share / 2, row, label, ha="center", va="center", color=ink_on(shade), weight="bold")


def _waiting_bar(axes: Axes, row: int, riders: Sequence[ClientRecord]) -> None:
    """With its value beside it, since a bar of nothing cannot be told from no bar."""
    total = sum(r.virtual_seconds for r in riders)
    share = sum(r.waiting_seconds for r in riders) / total if total else 0.0
    axes.barh(row, share, height=0.66, color="0.70", edgecolor=INK, linewidth=0.6)
    fits = share < _ROOM_BESIDE
    said = f"{100 * share:.0f} %" if riders else "no cut"
    place = share + 0.015 if fits else share - 0.015
    axes.text(place, row, said, ha="left" if fits else "right", va="center", color=INK)


def memory_figure(givens: Sequence[Given]) -> str:
    """Left: measured and declared against predicted bytes. Right: by how many percent they differ."""
    audits = [r for one in givens for r in one.audited]
    points = np.array(sorted({(r.predicted_peak_bytes, r.measured_peak_bytes or 0) for r in audits}), float)
    tightest: dict[int, int] = {}
    for record in audits:
        known = tightest.get(record.predicted_peak_bytes, record.memory_bytes)
        tightest[record.predicted_peak_bytes] = min(known, record.memory_bytes)
    declared = np.array(sorted(tightest.items()), float)
    divisor, unit = byte_scale(float(declared.max()))
    kept: list[str] = []
    with figure(3.4, kept.append) as drawn:
        bytes_axes, ratio_axes = drawn.subplots(1, 2, width_ratios=(1.15, 1.0))
        _peaks(bytes_axes, points / divisor, declared / divisor, unit)
        percent = 100 * (points[:, 1] / points[:, 0] - 1)
        ratio_axes.axhspan(-2, 2, color="0.93", zorder=0)
        ratio_axes.axhline(0, color=MUTED, linewidth=0.8)
        ratio_axes.plot(points[:, 0] / divisor, percent, "o", markerfacecolor="none", color=ACCENT)
        reach = max(2.6, 1.15 * float(np.abs(percent).max()))
        ratio_axes.set_ylim(-reach, reach)
        ratio_axes.set_xlim(bytes_axes.get_xlim())
        ratio_axes.set_xlabel(f"Predicted peak (live tensor {unit})")
        ratio_axes.set_ylabel("Measured minus predicted (% of predicted)")
        ratio_axes.set_title("Error of the prediction; band: 2 %")
    return kept[0]


def _peaks(axes: Axes, points: np.ndarray, declared: np.ndarray, unit: str) -> None:
    largest = float(points.max())
    end = largest * 1.08
    axes.plot([0, end], [0, end], "-", color=MUTED, linewidth=0.8, label="measured = predicted", zorder=1)
    axes.vlines(declared[:, 0], declared[:, 0], declared[:, 1], color="0.8", linewidth=0.8, zorder=1)
    axes.plot(
        *declared.T, "_", color=INK, markersize=9, markeredgewidth=1.4, label="smallest declared memory"
    )
    axes.plot(*points.T, "o", markerfacecolor="white", color=ACCENT, label="measured by an audit")
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.06 * float(max(declared[:, 1].max(), largest)))
    axes.set_xlabel(f"Predicted peak (live tensor {unit})")
    axes.set_ylabel(f"Bytes ({unit})")
    axes.set_title("Predicted, measured, declared")
    axes.legend(loc="upper left")


def classes_figure(classes: Sequence[DeviceClass]) -> str:
    """A point per client: rounds taken part in, and accuracy at the end on the client's own test rows."""
    kept: list[str] = []
    with figure(0.95 + 0.5 * len(classes), kept.append) as drawn:
        tested = any(c.tests for c in classes)
        panels = drawn.subplots(1, 2 if tested else 1, sharey=True, squeeze=False)[0]
        rounds_axes = panels[0]
        for row, device_class in enumerate(classes):
            _strip(rounds_axes, row, list(device_class.rounds_by_client.values()))
        rounds_axes.set_yticks(range(len(classes)), [c.name for c in classes])
        rounds_axes.set_ylim(len(classes) - 0.5, -0.5)
        rounds_axes.set_xlim(left=min(0, -0.02 * rounds_axes.get_xlim()[1]))
        rounds_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        rounds_axes.set_xlabel("Rounds a client was asked in (number)")
        if tested:
            for row, device_class in enumerate(classes):
                _strip(panels[1], row, [r.accuracy for r in device_class.tests if r.num_rows])
            panels[1].set_xlim(-0.02, 1.02)
            panels[1].set_xlabel("Accuracy at the end, own test rows (share)")
        for axes in panels:
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
    return kept[0]


def _strip(axes: Axes, row: int, values: Sequence[float]) -> None:
    if not values:
        return
    # Spread evenly rather than at random, so that the same run draws the same picture.
    spread = row + 0.22 * np.sin(2.4 * np.arange(len(values)))
    axes.plot(
        values, spread, "o", markerfacecolor="none", color=ACCENT, alpha=0.75, markersize=3.6,
        rasterized=len(values) > 2000,
    )  # fmt: skip
    axes.vlines(float(np.median(values)), row - 0.34, row + 0.34, color=INK, linewidth=1.8)


def outcomes_figure(rounds: Sequence[RoundRecord]) -> str:
    """A bar per round, parted by outcome; many rounds are summed in groups."""
    size = -(-len(rounds) // MAX_BARS)
    counts = np.array([outcome_counts(record) for record in rounds])
    starts = range(0, len(rounds), size)
    bars = np.array([counts[start : start + size].sum(axis=0) for start in starts])
    places = [float(np.mean([r.round for r in rounds[start : start + size]])) for start in starts]
    kept: list[str] = []
    with figure(2.6, kept.append) as drawn:
        axes = drawn.subplots()
        bottom = np.zeros(len(bars))
        for kind, (outcome, (shade, hatch)) in enumerate(zip(OUTCOMES, _OUTCOME_LOOKS, strict=True)):
            if not bars[:, kind].any():
                continue
            drawn_bars = axes.bar(places, bars[:, kind], 0.8 * size, bottom, color=shade, label=outcome)
            for bar in drawn_bars:
                bar.set(edgecolor=INK, linewidth=0.5, hatch=hatch)
            bottom += bars[:, kind]
        axes.set_xlabel("Round (number)" if size == 1 else f"Round (number; a bar is {size} rounds)")
        axes.set_ylabel("Clients asked (number)")
        axes.grid(visible=False, axis="x")
        # A run of one round is one slim bar, not a wall.
        axes.set_xlim(places[0] - size, max(places[-1] + size, places[0] + 6 * size))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        if bottom.any():
            drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(OUTCOMES))
    return kept[0]
