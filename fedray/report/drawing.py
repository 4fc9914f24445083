"""How every figure looks: fonts, greys and hatches that survive a printer, and SVG that stands alone."""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.cost import Floats

INK, ACCENT, MUTED, FAINT = "#1a1a1a", "#0b4f8a", "#6b6b6b", "#e4e4e4"
# Told apart without colour too: the lines by their dashes, the points by their shapes.
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Figures are drawn this wide and shown as wide as the text.
WIDTH_INCHES = 8.6

# Any: matplotlib types its keys as one long Literal.
_LOOK: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    # A device class may be named with dollar signs.
    "text.parse_math": False,
    # The same run gives the same bytes.
    "svg.hashsalt": "fedray",
}


@contextmanager
def figure(height_inches: float, keep: Callable[[str], None]) -> Iterator[Figure]:
    """A figure in the house's look; when the block ends, ``keep`` is given its `data:` address."""
    with mpl.rc_context(_LOOK):
        drawn = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        yield drawn
        written = io.BytesIO()
        drawn.savefig(written, format="svg", metadata={"Date": None})
    keep("data:image/svg+xml;base64," + base64.b64encode(written.getvalue()).decode("ascii"))


def byte_scale(largest: float) -> tuple[float, str]:
    """What to divide by, and the unit it gives."""
    return _scale(
        largest, ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB"))
    )


def second_scale(largest: float) -> tuple[float, str]:
    """The same for seconds; the step is taken a little late, so that an axis ends in twos or more."""
    return _scale(
        largest, ((1.0, "s"), (120.0, "min"), (7200.0, "h"), (172800.0, "days")), (1, 60, 3600, 86400)
    )


def joule_scale(largest: float) -> tuple[float, str]:
    """The same for joules."""
    return _scale(largest, ((1.0, "J"), (1e3, "kJ"), (1e6, "MJ"), (1e9, "GJ")))


def flops_scale(largest: float) -> tuple[float, str]:
    """The same for FLOPs a second."""
    steps = ((1.0, "FLOP/s"), (1e6, "MFLOP/s"), (1e9, "GFLOP/s"), (1e12, "TFLOP/s"))
    return _scale(largest, steps)


def bps_scale(largest: float) -> tuple[float, str]:
    """The same for bits a second."""
    return _scale(largest, ((1.0, "bit/s"), (1e3, "kbit/s"), (1e6, "Mbit/s"), (1e9, "Gbit/s")))


def show_joules(joules: float) -> str:
    """12345 to ``"12.3 kJ"``."""
    divisor, unit = joule_scale(joules)
    return f"{joules / divisor:.1f} {unit}"


def _scale(
    largest: float, steps: tuple[tuple[float, str], ...], divisors: tuple[float, ...] = ()
) -> tuple[float, str]:
    chosen = max((i for i, (start, _) in enumerate(steps) if largest >= start), default=0)
    return (divisors or tuple(start for start, _ in steps))[chosen], steps[chosen][1]


def from_zero(axes: Axes, values: Floats) -> None:
    """An x axis from 0 to a little beyond the largest value."""
    largest = float(values.max()) if len(values) else 0.0
    axes.set_xlim(0, largest * 1.04 if largest > 0 else 1.0)


def grey(position: int, count: int) -> str:
    """From light to dark, one step of ``count``."""
    level = 0.92 - 0.72 * (position / max(count - 1, 1))
    return f"{level:.3f}"


def ink_on(shade: str) -> str:
    """Letters that can be read on a grey."""
    return INK if float(shade) > 0.5 else "white"
