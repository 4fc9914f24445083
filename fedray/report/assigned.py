"""The two sections on assignments: who got what, and whether what was predicted was measured."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import MARGIN
from fedray.record import ClientRecord
from fedray.report.figures import memory_figure, mix_figure
from fedray.report.markup import Cell, Section, Shaded, html_table, paragraph, picture
from fedray.report.tallies import DeviceClass, Given
from fedray.trained import PARTS, Prompt, Weights
from fedray.units import show_bytes

# Policies with random ranks make one for every client; a table of more is not read.
MAX_ASSIGNMENTS = 60
# More device classes than this leave room for shares alone, and for an assignment in one column.
MAX_COUNTED = 5
_KNOBS = (
    "Rank",
    "Trained blocks",
    "Blocks",
    "Width",
    "Cut",
    "Re-compute",
    "Dtype",
    "Frozen bits",
    "Batch (rows)",
    "Up as",
    "Down as",
)
# Columns that are left out where every assignment says the same.
_USUAL = {
    "Blocks": "all",
    "Width": "all",
    "Cut": "none",
    "Frozen bits": "all",
    "Up as": "none",
    "Down as": "none",
}


def mix(givens: Sequence[Given], classes: Sequence[DeviceClass]) -> Section:
    """Rank, depth and recompute by device class."""
    title = "Who got what"
    if not givens:
        return Section(anchor="mix", title=title, body=paragraph("No client was given an assignment."))
    asked = [c for c in classes if c.records]
    body = paragraph(
        "Darker is more work: trained blocks first, then rank. A cell counts client-rounds, whatever their "
        "outcome, and their share of the device class. Classes stand from the least declared memory to "
        "the most."
    )
    body += picture(mix_figure(givens, asked), "Share of each device class's client-rounds by assignment.")
    shown = _shown_knobs(givens)
    knobs = ("Assignment",) if _is_wide(asked) else tuple(_KNOBS[i] for i in shown)
    rows = [_mix_row(one, asked, shown) for one in givens[:MAX_ASSIGNMENTS]]
    body += html_table(("", *knobs, *(c.name for c in asked)), rows, words=1 + len(knobs)) + _more(givens)
    body += _held(asked)
    return Section(anchor="mix", title=title, body=body)


def _held(classes: Sequence[DeviceClass]) -> str:
    """Who has ever been sent how much of the frozen model; nothing where all of it went to everybody."""
    last = [(c.name, {record.client_id: record.held_share for record in c.records}) for c in classes]
    every = {share for _, shares in last for share in shares.values()}
    # A run of before there was this column has zeros alone.
    if every <= {1.0} or every == {0.0}:
        return ""
    rows: list[list[Cell]] = [
        [
            name,
            str(len(shares)),
            str(sum(share == 1 for share in shares.values())),
            f"{100 * float(np.median(list(shares.values()))):.0f} %",
            f"{100 * max(shares.values()):.0f} %",
        ]
        for name, shares in last
    ]
    head = ("Device class", "Clients", "Held all of it", "Median share", "Largest share")
    return paragraph(
        "What of the frozen model has ever reached a client, in bytes of the whole: whoever was sent a block "
        "can keep it. Which blocks stands in clients.parquet (held_blocks)."
    ) + html_table(head, rows)


def _more(givens: Sequence[Given]) -> str:
    hidden = len(givens) - MAX_ASSIGNMENTS
    return paragraph(f"{hidden} more assignments stand in clients.parquet.", quiet=True) if hidden > 0 else ""


def _is_wide(classes: Sequence[DeviceClass]) -> bool:
    return len(classes) > MAX_COUNTED


def _shown_knobs(givens: Sequence[Given]) -> list[int]:
    """Positions of the columns: without any cut there is none for it, nor for codecs without any."""
    columns = list(zip(*(_knobs(one.assignment) for one in givens), strict=True))
    return [i for i, knob in enumerate(_KNOBS) if set(columns[i]) != {_USUAL.get(knob)}]


def _mix_row(one: Given, classes: Sequence[DeviceClass], shown: Sequence[int]) -> list[Cell]:
    knobs = _knobs(one.assignment)
    words = [str(one.assignment)] if _is_wide(classes) else [knobs[i] for i in shown]
    cells: list[Cell] = [one.code, *words]
    for device_class in classes:
        count = sum(r.device_class == device_class.name for r in one.records)
        share = count / len(device_class.records)
        text = f"{100 * share:.0f} %" if _is_wide(classes) else f"{count} ({100 * share:.0f} %)"
        cells.append(Shaded(text=text, share=share) if count else None)
    return cells


def _knobs(a: Assignment) -> tuple[str, ...]:
    # Under a cut there are ranks for the server's blocks too.
    total = len(a.trained) or len(a.blocks)
    trained = f"{a.num_trained_blocks} of {total}" if a.num_trained_blocks or not a.split else "0"
    recompute = "yes" if a.recompute else "no"
    return (
        ranks(a),
        trained,
        ",".join(map(str, a.blocks)) if a.is_submodel else "all",
        "all" if a.width is None else str(a.width),
        cut_words(a),
        recompute,
        a.dtype,
        f"{a.sparsity:g} zero" if a.sparsity else str(a.weight_bits or "all"),
        str(a.batch_size),
        a.up_codec,
        a.down_codec,
    )


def cut_words(assignment: Assignment) -> str:
    """The cut with what belongs to it, or that there is none."""
    a = assignment
    if not a.split:
        return "none"
    extras = [f"tail {a.tail}"] * bool(a.tail) + ["local loss"] * a.local_loss
    extras += ["black box"] * a.is_black_box
    return ", ".join([str(a.cut), *extras, *([a.cut_codec] if a.cut_codec != "none" else [])])


def ranks(assignment: Assignment) -> str:
    """The ranks of the trained blocks: one, or the different ones with a slash between."""
    match assignment.adapter:
        case HeadOnly():
            return "head only"
        case Weights(part=part):
            return PARTS[part]
        case Prompt(num_tokens=num_tokens) as prompt:
            return f"{prompt.word} of {num_tokens}"
        case Lora(ranks=own):
            return "/".join(map(str, sorted({rank for rank in own if rank})))
        case _:
            assert_never(assignment.adapter)


def memory(givens: Sequence[Given]) -> Section:
    """Predicted against audited peaks."""
    title = "Predicted and audited memory"
    body = paragraph(
        "Bytes here are live bytes of tensors, counted under torch's dispatcher while a client trains alone. "
        "They are not the process's resident set, which is larger: fedray doctor says by what factor on "
        f"a machine. An assignment fits a client if the predicted peak times {MARGIN} stays within its "
        "declared memory."
    )
    if any(one.audited for one in givens):
        body += picture(
            memory_figure(givens), "Measured against predicted peak bytes of every audited client-round."
        )
    else:
        body += paragraph(
            "No audit ran, so nothing was measured; audit.distinct: true audits every assignment once."
        )
    head = (
        *("", "Assignment", "Client-rounds", "Audits", "Predicted peak", "Measured peak"),
        *("Measured / predicted", "Smallest declared", "Least margin, predicted", "Least margin, measured"),
    )
    body += html_table(head, [_memory_row(one) for one in givens[:MAX_ASSIGNMENTS]], words=2) + _more(givens)
    body += paragraph(
        "Peaks are those of the largest work shape: the largest audited one where there are audits. A margin "
        "is what a client has left, as a share of its declared memory: the least of all client-rounds by "
        "prediction, the least of the audited ones by measurement.",
        quiet=True,
    )
    return Section(anchor="memory", title=title, body=body)


def _memory_row(one: Given) -> list[Cell]:
    audited = one.audited
    predicted = max(r.predicted_peak_bytes for r in audited or one.records)
    measured = max((r.measured_peak_bytes or 0 for r in audited), default=None)
    return [
        one.code,
        str(one.assignment),
        len(one.records),
        len(audited),
        show_bytes(predicted),
        "not audited" if measured is None else show_bytes(measured),
        _ratios(audited),
        show_bytes(min(r.memory_bytes for r in one.records)),
        _margin([(r.memory_bytes, r.predicted_peak_bytes) for r in one.records]),
        _margin([(r.memory_bytes, r.measured_peak_bytes or 0) for r in audited]),
    ]


def _ratios(audited: Sequence[ClientRecord]) -> str | None:
    if not audited:
        return None
    found = [(r.measured_peak_bytes or 0) / r.predicted_peak_bytes for r in audited]
    low, high = f"{min(found):.3f}", f"{max(found):.3f}"
    return low if low == high else f"{low} \u2013 {high}"


def _margin(pairs: Sequence[tuple[int, int]]) -> str | None:
    return f"{100 * min((memory - peak) / memory for memory, peak in pairs):.1f} %" if pairs else None
