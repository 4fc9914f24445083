"""The sections on time: a round's timeline, and what held the run back."""

from collections.abc import Sequence

import numpy as np

from fedray.record import ClientRecord
from fedray.report.coverage import covered, lost_by_codec, trained_by_few
from fedray.report.drawing import INK, figure, from_zero, second_scale
from fedray.report.markup import Cell, Section, html_table, paragraph, picture
from fedray.report.phases import (
    MOST,
    PHASES,
    Shares,
    asked_by_round,
    in_order,
    overlaps,
    phases_of,
    shares_of,
    slowest_over_median,
    usual_round,
)
from fedray.report.reading import Run

# More bars are not told apart; of more clients the slowest and as many others, evenly, are drawn.
MAX_CLIENTS = 40
_LOOKS = (("0.93", ""), ("0.35", ""), ("0.80", "///"), ("1.0", "..."), ("0.62", "xxx"))
# An update that arrives this far off is mostly not what was learnt.
MOSTLY_LOST = 0.5
# Nearly nothing in common, and in the last half of the evaluations no more gained than this.
UNLIKE, STALLED = 0.9, 0.02
# A rule that alone moves the products by this much a round undoes what is learnt.
ERODES = 0.1
# A last client this many times slower than the median one is what the round waits for.
STRAGGLES = 2.0


def timeline(run: Run) -> Section:
    """Who did what when, in the round of median length."""
    one = usual_round(run)
    asked = in_order(asked_by_round(run)[one.round])
    shown = asked if len(asked) <= MAX_CLIENTS else [asked[i] for i in _evenly(len(asked))]
    body = paragraph(
        f"Round {one.round}, the one of median length; a bar is a client, the slowest on top, from when it "
        "was asked until its update was there, or it was called off or gone (a cross, with its outcome). "
        "With a cut, computing, crossing and waiting take turns; their sums are drawn one after the other."
    )
    body += picture(timeline_figure(shown), f"What {len(shown)} clients did in round {one.round}, by phase.")
    if len(shown) < len(asked):
        body += paragraph(f"{len(shown)} of {len(asked)} clients, evenly from slow to quick.", quiet=True)
    return Section(anchor="timeline", title="A round on the virtual clock", body=body)


def timeline_figure(records: Sequence[ClientRecord]) -> str:
    """A bar for each client, parted by phase; greys and hatches tell the phases apart."""
    largest = max((record.virtual_seconds for record in records), default=1.0)
    divisor, unit = second_scale(largest)
    kept: list[str] = []
    with figure(1.1 + 0.19 * len(records), kept.append) as drawn:
        axes = drawn.subplots()
        left = np.zeros(len(records))
        parts = [phases_of(record) for record in records]
        for phase, (shade, hatch) in zip(PHASES, _LOOKS, strict=True):
            seconds = np.array([part[phase] for part in parts]) / divisor
            if seconds.any():
                axes.barh(
                    range(len(records)), seconds, 0.72, left, color=shade, hatch=hatch, label=phase,
                    edgecolor=INK, linewidth=0.4,
                )  # fmt: skip
            left += seconds
        for place, record in enumerate(records):
            if record.outcome != "ok":
                end = record.virtual_seconds / divisor
                axes.plot(end, place, "x", color=INK, markersize=5, markeredgewidth=1.4, clip_on=False)
                axes.annotate(record.outcome, (end, place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(records)), [f"{r.client_id}, {r.device_class}" for r in records])
        axes.set_ylim(len(records) - 0.4, -0.6)
        axes.set_ylabel("Client and device class")
        axes.set_xlabel(f"Virtual time since it was asked ({unit})")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        from_zero(
            axes, np.array([largest / divisor * (1.08 if any(r.outcome != "ok" for r in records) else 1)])
        )
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(PHASES))
    return kept[0]


def held_back(run: Run) -> Section:
    """Shares of virtual time, what reached the model, and what they say of the run."""
    title = "What held this run back"
    shares = None if overlaps(run) else shares_of(run)
    body = "".join(paragraph(sentence) for sentence in verdicts(run, shares))
    if measured := _measured(run):
        body += paragraph(measured)
    if shares is None:
        body += paragraph("Rounds overlapped, so no round waited for one client; shares are not told.")
    else:
        body += _by_phase(shares)
    body += covered(run.clients) + lost_by_codec(run.rounds, run.clients)
    return Section(anchor="held-back", title=title, body=body)


def _by_phase(shares: Shares) -> str:
    rows: list[list[Cell]] = [
        [phase, _percent(shares.of_rounds[phase]), _percent(shares.of_clients[phase])]
        for phase in PHASES
        if shares.of_clients[phase] or shares.of_rounds[phase]
    ]
    rows.append(["done, and the round was not over", None, _percent(shares.idle)])
    note = (
        "Of the rounds: of each round's last client, which it ended with. Of all clients: of the time from "
        "being asked until the last of the round was done."
    )
    return html_table(("Phase", "Of the rounds", "Of all clients"), rows) + paragraph(note, quiet=True)


def _measured(run: Run) -> str:
    """Disagreement, lost shares and drift, as far as they were measured."""
    found = []
    apart = [one.disagreement for one in run.rounds if one.disagreement is not None]
    if apart:
        found.append(
            f"Disagreement of a round's updates, 0 if all are the same and 1 if they have nothing in common: "
            f"{np.median(apart):.2f} in the median, {max(apart):.2f} at most."
        )
    lost = [record.lost_share for record in run.clients if record.lost_share is not None]
    if lost:
        found.append(
            f"Codecs changed {_percent(float(np.median(lost)))} of an update's length in the median."
        )
    drift = sum(one.drift for one in run.rounds)
    if drift:
        found.append(
            f"The rule's own drift, by which a round without any training would move the products: "
            f"{_percent(float(np.median([one.drift for one in run.rounds])))} of their length in the median."
        )
    return " ".join(found)


def verdicts(run: Run, shares: Shares | None) -> list[str]:
    """What stands out, a sentence each; that nothing does where nothing does."""
    found = [] if shares is None else _of_time(run, shares)
    others = (_compressed(run), _unlike(run), _eroded(run), trained_by_few(run.clients))
    found += [sentence for sentence in others if sentence]
    most = "" if shares is None else ": no phase takes more than half of the rounds' time"
    return found or [f"Nothing stands out{most}."]


def _of_time(run: Run, shares: Shares) -> list[str]:
    found = []
    if shares.on_links > MOST:
        found.append(
            f"Bound by communication: {_percent(shares.on_links)} of the rounds' time went by while bytes "
            "moved. Codecs (menu.up_codecs, menu.down_codecs), smaller ranks or more local steps move less "
            "for what is learnt."
        )
    if shares.of_rounds["computing"] > MOST:
        found.append(
            f"Bound by computing: {_percent(shares.of_rounds['computing'])} of the rounds' time was "
            "arithmetic of the client that the round waited for."
        )
    if shares.of_rounds["waiting for the server"] > MOST:
        found.append(
            f"Bound by the server: {_percent(shares.of_rounds['waiting for the server'])} of the rounds' "
            "time the last client waited for it; server.num_shards and server.flops_per_s say what it has."
        )
    ratio = slowest_over_median(run)
    if ratio > STRAGGLES:
        found.append(
            f"Held up by stragglers: a round's last client took {ratio:.1f} times as long as its median one. "
            "A deadline or a goal (pace), or less work for the slow, ends rounds earlier."
        )
    return found


def _compressed(run: Run) -> str:
    lost = [record.lost_share for record in run.clients if record.lost_share is not None]
    if not lost or np.median(lost) <= MOSTLY_LOST:
        return ""
    return (
        f"Degraded by compression: codecs changed an update by {_percent(float(np.median(lost)))} of its "
        "length, the median of those coded. A milder one (int8, or a larger share) beside it tells what that "
        "costs in accuracy."
    )


def _unlike(run: Run) -> str:
    """Where updates point apart and accuracy stands still far from its end, if both are known."""
    apart = [one.disagreement for one in run.rounds if one.disagreement is not None]
    reached = [one.accuracy for one in run.rounds if one.accuracy is not None]
    if not apart or len(reached) < 4:
        return ""
    later, before = apart[len(apart) // 2 :], max(reached[: len(reached) // 2])
    if np.median(later) < UNLIKE or max(reached[len(reached) // 2 :]) > before + STALLED:
        return ""
    return (
        f"Stalled by unlike data: in the last half nothing was gained (accuracy {before:.3f} before), and "
        f"updates had {_percent(max(1 - float(np.median(later)), 0.0))} in common. Fewer local steps, a "
        "smaller step size, training.proximal_mu or more clients a round pull them together."
    )


def _eroded(run: Run) -> str:
    usual = float(np.median([one.drift for one in run.rounds]))
    if usual <= ERODES:
        return ""
    return (
        f"Eroded by the rule: a round in which nobody learns would move the products by {_percent(usual)} "
        "of their length, in the median, by aggregation alone. A rule that keeps L1 (factor_mean, flora) "
        "does not."
    )


def _evenly(count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, MAX_CLIENTS).tolist()})


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
