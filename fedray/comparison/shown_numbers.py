"""Medians over seeds, as people read them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from fedray.comparison.contest import Difference, Row, difference
from fedray.report.drawing import show_joules
from fedray.report.markup import NOTHING
from fedray.units import show_bytes, show_seconds

_SHOW: Mapping[str, Callable[[float], str]] = {
    "s": show_seconds,
    "B": show_bytes,
    "J, declared": show_joules,
    "share": lambda value: f"{value:.3f}",
    "Jain's index": lambda value: f"{value:.2f}",
    "epsilon": lambda value: f"{value:.3g}",
    "dB": lambda value: f"{value:.1f} dB",
}


def policies_of(rows: Sequence[Row]) -> list[str]:
    """In the order in which they were given."""
    return list(dict.fromkeys(row.policy for row in rows))


def shown_median(rows: Sequence[Row], policy: str, measure: str, group: str = "") -> str:
    """A median over seeds; a target that most seeds missed is ``> budget``, one that some missed says so."""
    found = [r for r in rows if (r.policy, r.measure, r.group) == (policy, measure, group)]
    values = [row for row in found if row.value is not None]
    if not values:
        return NOTHING
    show = _SHOW[values[0].unit]
    reached = [row.value for row in values if not row.censored and row.value is not None]
    if 2 * len(reached) <= len(values) and len(reached) < len(values):
        # The median is one of those that are only known to be more than what was spent.
        return f"> {show(median(row.value or 0.0 for row in values if row.censored))}"
    ends = sorted([*reached, *[float("inf")] * (len(values) - len(reached))])
    said = show(ends[(len(ends) - 1) // 2] if len(reached) < len(values) else median(reached))
    return said if len(reached) == len(values) else f"{said} ({len(reached)} of {len(values)})"


def shown_difference(rows: Sequence[Row], policy: str, other: str, measure: str, group: str = "") -> str:
    """``+0.031 [0.012, 0.050]``: the mean paired difference and its interval."""
    return _said(difference(rows, policy, other, measure, group))


def _said(found: Difference) -> str:
    if found.mean is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
