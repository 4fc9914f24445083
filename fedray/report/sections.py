"""What the page says, section by section: sentences, tables and figures from a run's tallies."""

import json
from collections.abc import Sequence

import numpy as np

from fedray.record import ClientRecord, EvaluationRecord, RoundRecord
from fedray.report.drawing import byte_scale, show_joules
from fedray.report.figures import classes_figure, outcomes_figure, progress_figure
from fedray.report.markup import (
    NOTHING,
    Cell,
    Section,
    folded,
    html_table,
    paragraph,
    picture,
    preformatted,
    tiles,
)
from fedray.report.protection import epsilon_tile, is_private
from fedray.report.reading import Run
from fedray.report.tallies import (
    OUTCOMES,
    DeviceClass,
    Spent,
    best_round,
    curves,
    has_cuts,
    last_evaluated,
    mean_accuracy,
    outcome_counts,
    troubles,
)
from fedray.units import show_bytes, show_seconds

# A page is read by people: longer lists end with how many more there are.
MAX_LINES = 60


def headline(run: Run, spent: Spent) -> Section:
    """The numbers one looks for first."""
    splits = [curve.split for curve in curves(run)]
    final, best = (_evaluated(record, splits) for record in (last_evaluated(run), best_round(run)))
    counts = np.array([outcome_counts(record) for record in run.rounds]).sum(axis=0)
    asked = int(counts.sum())
    others = [f"{n} {outcome}" for outcome, n in zip(OUTCOMES[1:], counts[1:], strict=True) if n]
    audits = [r for r in run.clients if r.measured_peak_bytes is not None]
    above = sum((r.measured_peak_bytes or 0) > r.memory_bytes for r in audits)
    clients = {record.client_id for record in run.clients}
    classes = {record.device_class for record in run.clients}
    values = (
        ("Final accuracy", *final),
        ("Best accuracy", *best),
        ("Rounds", f"{len(run.rounds)}", f"clients asked: {len(clients)}, device classes: {len(classes)}"),
        ("Client-rounds ok", f"{counts[0]} of {asked}", ", ".join(others) or "nothing else happened"),
        (
            "Virtual time",
            show_seconds(float(spent.virtual_seconds[-1])),
            "what the declared devices would take",
        ),
        ("Wall time", show_seconds(float(spent.wall_seconds[-1])), "what this machine took"),
        ("Bytes on the wire", show_bytes(float(spent.wire_bytes[-1])), _wire(spent)),
        ("Energy, declared", show_joules(float(spent.joules[-1])), "by declared watts, thrown-away work too"),
        *((epsilon_tile(run),) if is_private(run) else ()),
    )
    verdict = (
        f"{len(audits)} of {len(run.clients)} client-rounds ran alone under the byte counter; "
        f"{above or 'none'} of them held more than the client declared."
        if audits
        else "No client-round was audited, so no peak here was measured."
    )
    return Section(anchor="headline", title="Headline numbers", body=tiles(values) + paragraph(verdict))


def _evaluated(record: RoundRecord | None, splits: Sequence[str]) -> tuple[str, str]:
    if record is None or record.accuracy is None:
        return NOTHING, "nothing was evaluated"
    return f"{record.accuracy:.3f}", f"{splits[0]} rows, after round {record.round}"


def _wire(spent: Spent) -> str:
    parts = [("up", spent.up_bytes), ("down", spent.down_bytes), ("provision", spent.provision_bytes)]
    if spent.boundary_bytes[-1]:
        parts.insert(2, ("over cuts", spent.boundary_bytes))
    return ", ".join(f"{show_bytes(float(value[-1]))} {name}" for name, value in parts)


def progress(run: Run, spent: Spent) -> Section:
    """Accuracy against what it cost."""
    found = curves(run)
    body = paragraph(
        "Compare runs at equal virtual time, bytes or energy, not at equal rounds. Energy is by the watts "
        "that devices declare, nobody measured it. Bytes are those counted "
        "up and down, and provision: the frozen weights that still had to reach a client. Late and lost work "
        "is charged."
    )
    if has_cuts(run):
        body += paragraph(
            "Bytes over cuts, hidden states and their gradients, are among the bytes on the wire."
        )
    if found:
        last = found[0]
        body += picture(
            progress_figure(found, spent),
            f"Accuracy against virtual time, bytes and energy; it ends at {last.accuracy[-1]:.3f}.",
        )
    else:
        body += paragraph(
            "This run evaluated nothing, so there is no curve; set rounds.eval_rounds to have one."
        )
    body += folded(f"Every round ({len(run.rounds)})", _every_round(run, spent))
    return Section(anchor="progress", title="Accuracy against cost", body=body)


def _every_round(run: Run, spent: Spent) -> str:
    head = (
        *(
            "Round",
            "Accuracy",
            "Loss",
            "Virtual time",
            "Wall time",
            "Up",
            "Down",
            "Provision",
            *(("Over cuts",) if has_cuts(run) else ()),
            "Energy, declared",
            "Drift",
        ),
        *OUTCOMES,
    )
    columns = [spent.up_bytes, spent.down_bytes, spent.provision_bytes]
    wire = np.diff(columns + [spent.boundary_bytes] * has_cuts(run), axis=1, prepend=0)
    rows: list[list[Cell]] = [
        [
            str(r.round),
            r.accuracy,
            r.loss,
            show_seconds(r.virtual_seconds),
            show_seconds(r.wall_seconds),
            *map(show_bytes, moved),
            show_joules(r.joules),
            f"{r.drift:.2g}",
            *outcome_counts(r),
        ]
        for r, moved in zip(run.rounds, wire.T.tolist(), strict=True)
    ]
    return html_table(head, rows)


def participation(classes: Sequence[DeviceClass]) -> Section:
    """Who took part, and what the model is worth to them."""
    sentences = [
        "A point is a client, a stroke the median of its class. Classes stand from the least declared memory "
        "to the most."
    ]
    tested = [record for c in classes for record in c.tests]
    if tested:
        sentences.append(
            f"Accuracy is the global model's on the clients' own test rows, after round {_last(tested)}."
        )
    else:
        sentences.append(
            "The test rows belong to nobody, so there is no accuracy by class; "
            "data.per_client: true takes test rows from every client's own."
        )
    head = (
        *(
            "Device class",
            "Declared memory",
            "Clients",
            "Client-rounds",
            "Rounds a client (least\u2013most)",
            "Ok share",
        ),
        *("Rows trained", "Virtual time, median", "Accuracy, mean over rows", "Worst client"),
    )
    picture_ = picture(
        classes_figure(classes), "Rounds taken part in and accuracy at the end, by device class."
    )
    body = paragraph(" ".join(sentences)) + picture_ + html_table(head, [_class_row(c) for c in classes])
    return Section(anchor="classes", title="Participation and accuracy by device class", body=body)


def _last(records: Sequence[EvaluationRecord]) -> int:
    return max(record.round for record in records)


def _class_row(c: DeviceClass) -> list[Cell]:
    counts = list(c.rounds_by_client.values())
    ok = [r for r in c.records if r.outcome == "ok"]
    tests = [r for r in c.tests if r.num_rows]
    return [
        c.name,
        _memory_range(c),
        len(counts),
        len(c.records),
        f"{np.mean(counts):.1f} ({min(counts)}\u2013{max(counts)})" if counts else None,
        None if c.ok_share is None else f"{100 * c.ok_share:.0f} %",
        sum(r.num_rows for r in ok),
        show_seconds(float(np.median([r.virtual_seconds for r in c.records]))) if c.records else None,
        mean_accuracy(tests) if tests else None,
        min((r.accuracy for r in tests), default=None),
    ]


def _memory_range(c: DeviceClass) -> str | None:
    if not c.records:
        return None
    ends = [bound(r.memory_bytes for r in c.records) for bound in (min, max)]
    divisor, unit = byte_scale(max(ends))
    shown = dict.fromkeys(f"{count / divisor:.3g}" for count in ends)
    return f"{NOTHING.join(shown)} {unit}"


def outcomes(run: Run) -> Section:
    """How each round went, and what went wrong."""
    body = paragraph(
        "ok: the update counted. late: the round closed first. dropped: the client left. oom: the work did "
        "not fit its memory. failed: training could not go on."
    )
    body += picture(outcomes_figure(run.rounds), "Clients asked in each round, by outcome.")
    body += _staleness(run)
    found = troubles(run)
    if not found:
        return Section(
            anchor="outcomes",
            title="Outcomes",
            body=body + paragraph("No client failed, and none was run again."),
        )
    rows: list[list[Cell]] = [
        [str(r.round), str(r.client_id), r.device_class, r.outcome, str(r.attempts), _why(r)]
        for r in found[:MAX_LINES]
    ]
    body += "<h3>Failed, out of memory, or run again</h3>"
    body += html_table(("Round", "Client", "Device class", "Outcome", "Attempts", "Message"), rows, words=6)
    if len(found) > MAX_LINES:
        body += paragraph(f"{len(found) - MAX_LINES} more stand in clients.parquet.", quiet=True)
    return Section(anchor="outcomes", title="Outcomes", body=body)


def _staleness(run: Run) -> str:
    behind = [record.staleness for record in run.clients if record.outcome == "ok"]
    if not any(behind):
        return ""
    mean, most = sum(behind) / len(behind), max(behind)
    return paragraph(
        f"Rounds overlapped: when an update landed, the state was {mean:.1f} versions on from what its "
        f"client had been sent on average, and {most} at most."
    )


def _why(record: ClientRecord) -> str:
    if record.message:
        return record.message
    if record.outcome == "oom":
        return (
            f"{show_bytes(record.predicted_peak_bytes)} predicted, {show_bytes(record.memory_bytes)} declared"
        )
    return f"ran {record.attempts} times" if record.attempts > 1 else "no message was recorded"


def configuration(run: Run) -> Section:
    """What was asked, and where it ran."""
    rows: list[list[Cell]] = [[key, _words(value)] for key, value in run.environment.items()]
    body = paragraph("Everything that was asked, defaults too: this file runs it again.") + preformatted(
        run.config_text
    )
    body += "<h3>Where it ran</h3>" + html_table(("What", "Found"), rows, words=2)
    return Section(anchor="config", title="Configuration and environment", body=body)


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
