"""The section on cuts: who kept how many blocks, who waited for the server, and what crossed."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedray.record import ClientRecord
from fedray.report.drawing import show_joules
from fedray.report.figures import cuts_figure
from fedray.report.markup import Cell, Section, Shaded, html_table, paragraph, picture
from fedray.report.reading import Run
from fedray.report.tallies import DeviceClass
from fedray.units import show_bytes, show_seconds


def cuts(run: Run, classes: Sequence[DeviceClass]) -> Section:
    """Cuts by device class, waiting, and bytes over the boundary."""
    asked = [c for c in classes if c.records]
    body = paragraph(
        "A cut counts the leading blocks that a client keeps; the server runs the others for all who ride "
        "its sweep. A cell counts client-rounds, whatever their outcome, and their share of the device class."
    )
    body += picture(
        cuts_figure(asked),
        "Share of each device class's client-rounds by cut, and of its time spent waiting.",
    )
    body += _who_kept_what(asked)
    body += "<h3>Waiting for the server</h3>" + _waiting(run, asked)
    body += "<h3>Bytes over the cut</h3>" + _boundary(run, asked)
    return Section(anchor="cuts", title="Cuts and the server", body=body)


def _who_kept_what(classes: Sequence[DeviceClass]) -> str:
    found = sorted({r.cut for c in classes for r in c.records}, key=lambda cut: (cut is None, cut or 0))
    rows: list[list[Cell]] = []
    for cut in found:
        row: list[Cell] = ["whole model" if cut is None else str(cut)]
        for c in classes:
            count = Counter(r.cut for r in c.records)[cut]
            share = count / len(c.records)
            row.append(Shaded(text=f"{count} ({100 * share:.0f} %)", share=share) if count else None)
        rows.append(row)
    return html_table(("Cut", *(c.name for c in classes)), rows)


def _waiting(run: Run, classes: Sequence[DeviceClass]) -> str:
    rows: list[list[Cell]] = []
    for c in classes:
        riders = _riders(c.records)
        waits = [r.waiting_seconds for r in riders]
        total = sum(r.virtual_seconds for r in riders)
        rows.append(
            [
                c.name,
                len(riders),
                show_seconds(float(np.median(waits))) if waits else None,
                show_seconds(max(waits)) if waits else None,
                f"{100 * sum(waits) / total:.0f} %" if total else None,
                sum(r.num_messages for r in riders) if riders else None,
            ]
        )
    head = (
        *("Device class", "Client-rounds with a cut", "Waiting, median", "Waiting, longest"),
        *("Share of their virtual time", "Messages"),
    )
    joules = sum(r.server_joules for r in run.rounds)
    note = (
        "Waiting counts from a step's arrival at the server to the end of the sweep that serves it, or until "
        "a black box's loss leaves, and for who has a tail without what is done for it meanwhile, in virtual "
        "time. "
        f"The server's own energy while it swept, by its declared watts: {show_joules(joules)}."
    )
    return html_table(head, rows) + paragraph(note, quiet=True)


def _boundary(run: Run, classes: Sequence[DeviceClass]) -> str:
    rows: list[list[Cell]] = []
    for c in classes:
        riders = _whole_rides(c.records)
        predicted, counted = (
            [sum(getattr(r, name) for r in riders) for name in names]
            for names in (
                ("predicted_boundary_up_bytes", "predicted_boundary_down_bytes"),
                ("boundary_up_bytes", "boundary_down_bytes"),
            )
        )
        pairs = [show_bytes(value) for pair in zip(predicted, counted, strict=True) for value in pair]
        other = sum(_differs(r) for r in riders)
        rows.append([c.name, len(riders), *(pairs if riders else [None] * 4), other if riders else None])
    head = (
        *("Device class", "Client-rounds ok", "Up, predicted", "Up, counted"),
        *("Down, predicted", "Down, counted", "Client-rounds that differ"),
    )
    riders = _whole_rides(run.clients)
    other = sum(_differs(r) for r in riders)
    verdict = (
        f"In {len(riders) - other} of {len(riders)} client-rounds that ended ok under a cut, the bytes "
        "counted over it equal those predicted."
        if riders
        else "No client-round with a cut ended ok, so no prediction can be held to a count."
    )
    return paragraph(verdict) + html_table(head, rows)


def _riders(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    return [record for record in records if record.cut is not None]


def _whole_rides(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Who was not called off on the way: the others sent only a part."""
    return [record for record in _riders(records) if record.outcome == "ok"]


def _differs(record: ClientRecord) -> bool:
    predicted = record.predicted_boundary_up_bytes, record.predicted_boundary_down_bytes
    return predicted != (record.boundary_up_bytes, record.boundary_down_bytes)
