"""The two sections on devices: who they are and what fits them, and what they can run by themselves."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedray.cost import Floats
from fedray.record import DeviceRecord
from fedray.report.drawing import ACCENT, INK, bps_scale, byte_scale, figure, flops_scale
from fedray.report.markup import NOTHING, Cell, Section, html_table, paragraph, picture
from fedray.report.reading import Run

Scale = Callable[[float], tuple[float, str]]
ByClass = Mapping[str, Sequence[DeviceRecord]]
_QUANTITIES: tuple[tuple[str, str, Scale], ...] = (
    ("memory_bytes", "Memory for the job", byte_scale),
    ("flops_per_s", "Arithmetic", flops_scale),
    ("down_bps", "Downlink", bps_scale),
    ("up_bps", "Uplink", bps_scale),
)
_KINDS = (
    ("fits_whole", "Whole model"),
    ("fits_part", "Part of it"),
    ("fits_cut", "Under a cut"),
)
# More points than this on a line are a smear: the box alone is drawn.
_MOST_POINTS = 60


def fleet(run: Run) -> Section:
    """Who the devices are, by class: what they declare, what fits, and how often they took part."""
    by_class = _by_class(run.devices)
    total = run.devices[0].num_devices
    whole = total == len(run.devices)
    drawn = "" if whole else f"{len(run.devices)} of {total} devices, drawn by the seed. "
    body = paragraph(
        f"{drawn}A box holds the middle half of a class, a line nine tenths of it, the stroke is its median; "
        "a circle is a device where they are few. Axes are logarithmic. Rates are those that devices "
        "declare, arithmetic in the menu's first dtype."
    )
    body += picture(fleet_figure(by_class), "Memory, arithmetic and links of the devices, by class.")
    body += paragraph(
        "What fits is asked of the configuration's menu: to train the whole model, a part of it without a "
        "server (fewer blocks, narrower, few bits), or under a cut. "
        + ("" if whole else "That is of the drawn devices; who was ever asked is of all.")
    )
    head = ("Device class", "Devices", *(f"{name}, median" for _, name, _ in _QUANTITIES))
    kinds = [kind for kind in _KINDS if any(_has(device, kind[0]) for device in run.devices)]
    head += (*(name for _, name in kinds), "Nothing", *_TAKEN)
    taken = _taken_part(run)
    rows = [_row(name, own, kinds, taken[name]) for name, own in by_class.items()]
    return Section(anchor="fleet", title="The fleet", body=body + html_table(head, rows))


_TAKEN = ("Ever asked", "Client-rounds", "Counted")


def on_device(run: Run) -> Section:
    """The model that clients of each class can hold by themselves, and what it is worth."""
    final = next((r.accuracy for r in reversed(run.rounds) if r.accuracy is not None), None)
    body = paragraph(
        "The largest part of the model that at least half of a class's clients can train without a server, "
        "with what the run learnt of it, on the same rows as the whole model's accuracy"
        f"{'' if final is None else f' of {final:.3f}'}. fedray export writes a client's as a folder. A dash "
        "is a class of which more than half can hold no model by themselves."
    )
    rows: list[list[Cell]] = [
        [
            one.device_class,
            one.model or NOTHING,
            f"{one.num_holding} of {one.num_clients}",
            one.accuracy,
            one.loss,
        ]
        for one in run.classes
    ]
    head = ("Device class", "Model", "Clients that hold one", "Accuracy", "Loss")
    return Section(
        anchor="on-device",
        title="What each class can run by itself",
        body=body + html_table(head, rows, words=2),
    )


def fleet_figure(by_class: ByClass) -> str:
    """A panel for each quantity, a box for each class."""
    kept: list[str] = []
    with figure(0.9 + 0.42 * len(by_class), kept.append) as drawn:
        panels = drawn.subplots(1, len(_QUANTITIES), sharey=True)
        for axes, (column, name, scale) in zip(panels, _QUANTITIES, strict=True):
            values = {key: _column(own, column) for key, own in by_class.items()}
            every = np.concatenate(list(values.values()))
            divisor, unit = scale(float(np.median(every)))
            for row, own in enumerate(values.values()):
                _box(axes, row, own / divisor)
            _log_axis(axes, every.min() / divisor, every.max() / divisor)
            axes.set_xlabel(f"{name} ({unit})")
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(by_class)), list(by_class))
        panels[0].set_ylim(len(by_class) - 0.5, -0.5)
    return kept[0]


def _box(axes: Axes, row: int, values: Floats) -> None:
    low, quarter, median, most, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.hlines(row, low, high, color=INK, linewidth=0.8)
    axes.barh(row, most - quarter, left=quarter, height=0.5, color="0.85", edgecolor=INK, linewidth=0.6)
    axes.vlines(median, row - 0.34, row + 0.34, color=INK, linewidth=1.8)
    if len(values) <= _MOST_POINTS:
        spread = row + 0.22 * np.sin(2.4 * np.arange(len(values)))
        axes.plot(values, spread, "o", markerfacecolor="none", color=ACCENT, alpha=0.75, markersize=3.2)


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """From a little below the least value to a little above the largest."""
    axes.set_xscale("log")
    # All alike, or nearly: a logarithmic axis would have no number on it.
    room = max((high / low) ** 0.08, 1.1, (5 * low / high) ** 0.5)
    low, high = low / room, high * room
    axes.set_xlim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 120 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _row(
    name: str, own: Sequence[DeviceRecord], kinds: Sequence[tuple[str, str]], taken: Counter[str]
) -> list[Cell]:
    medians = []
    for column, _, scale in _QUANTITIES:
        median = float(np.median(_column(own, column)))
        divisor, unit = scale(median)
        medians.append(f"{median / divisor:.3g} {unit}")
    fit = [_share(sum(_has(device, kind) for device in own), len(own)) for kind, _ in kinds]
    nothing = sum(not any(_has(device, kind) for kind, _ in _KINDS) for device in own)
    return [name, len(own), *medians, *fit, _share(nothing, len(own)), *(taken[word] for word in _TAKEN)]


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.0f} %)"


def _has(device: DeviceRecord, kind: str) -> bool:
    return bool(getattr(device, kind))


def _column(own: Sequence[DeviceRecord], name: str) -> Floats:
    return np.array([getattr(device, name) for device in own], np.float64)


def _by_class(devices: Sequence[DeviceRecord]) -> dict[str, list[DeviceRecord]]:
    """The class with the least memory first."""
    found: dict[str, list[DeviceRecord]] = defaultdict(list)
    for device in devices:
        found[device.device_class].append(device)
    return dict(
        sorted(found.items(), key=lambda pair: (float(np.median(_column(pair[1], "memory_bytes"))), pair[0]))
    )


def _taken_part(run: Run) -> dict[str, Counter[str]]:
    """By class, all its devices: how many were ever asked, client-rounds, and updates that counted."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    ever: dict[str, set[int]] = defaultdict(set)
    for record in run.clients:
        ever[record.device_class].add(record.client_id)
        found[record.device_class]["Client-rounds"] += 1
        found[record.device_class]["Counted"] += record.outcome == "ok"
    for name, ids in ever.items():
        found[name]["Ever asked"] = len(ids)
    return found
