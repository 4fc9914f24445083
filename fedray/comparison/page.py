"""``comparison.html``, and the table on a terminal."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedray.comparison.contest import FEWEST_SEEDS, Finished, Row, by_setting
from fedray.comparison.entrants import YARDSTICKS, said
from fedray.comparison.pictures import cost_figure
from fedray.comparison.shown_numbers import policies_of, shown_difference, shown_median
from fedray.comparison.tuning import Tried
from fedray.report.drawing import show_joules
from fedray.report.markup import Section, document, html_table, paragraph, picture
from fedray.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from rich.table import Table

Column = tuple[str, str, str]
_ACCURACIES: tuple[Column, ...] = (
    ("Accuracy", "accuracy", ""),
    ("at equal time", "accuracy at equal", "virtual time"),
    ("at equal bytes", "accuracy at equal", "bytes"),
    ("at equal energy", "accuracy at equal", "energy"),
)
_COSTS: tuple[Column, ...] = (
    ("Time to target", "cost to target", "virtual time"),
    ("Bytes to target", "cost to target", "bytes"),
    ("Energy to target", "cost to target", "energy"),
)
_SPENT: tuple[Column, ...] = (
    ("Virtual time", "total", "virtual time"),
    ("Bytes", "total", "bytes"),
    ("Declared energy", "total", "energy"),
    ("Wasted time", "waste", "virtual time"),
    ("Wasted bytes", "waste", "bytes"),
    ("Wasted declared energy", "waste", "energy"),
    ("Peak memory", "peak memory", ""),
    ("of its memory", "peak share of memory", ""),
    ("Epsilon", "epsilon", ""),
    ("Epsilon at cuts", "epsilon at cuts", ""),
    ("Leaked at cuts", "leaked at cuts", ""),
    ("Backdoor", "attack success", ""),
    ("Lost to codecs", "lost to codecs", ""),
    ("Members told", "membership AUC", ""),
    ("Members told by ratio", "membership AUC by ratio", ""),
    ("Words found", "words found", ""),
    ("Images found", "images found", ""),
    ("Labels told", "labels found", ""),
)
_FAIR: tuple[Column, ...] = (
    ("Participation", "participation", ""),
    ("Worst tenth", "accuracy of worst tenth", ""),
    ("Unseen", "accuracy of unseen", ""),
)
_PAIRED: tuple[Column, ...] = (*_ACCURACIES, *_FAIR)


def text_of(rows: Sequence[Row], targets: Mapping[str, float]) -> str:
    """Two tables for a terminal of 80 columns, a policy a line; a pair for each setting."""
    from rich.console import Console

    written = io.StringIO()
    console = Console(file=written, width=80, highlight=False)
    for setting, here in _parted(rows).items():
        first, *_ = policies = policies_of(here)
        accuracies, costs = _text_table(_ACCURACIES, 8), _text_table(_COSTS, 18)
        accuracies.title = f"{setting or 'Medians over seeds'}; energy as declared; less {first}"
        costs.title = f"To a target of {targets[setting]:.3f}"
        accuracies.add_column("Less the first, by seed", justify="right", width=23)
        for policy in policies:
            less = _against(here, policy, first, "accuracy", "")
            accuracies.add_row(policy, *_medians(here, policy, _ACCURACIES), less)
            costs.add_row(policy, *_medians(here, policy, _COSTS))
        console.print(accuracies, costs, sep="\n\n")
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip().splitlines())


def _text_table(columns: Sequence[Column], width: int) -> "Table":
    from rich.table import Table

    table = Table(title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    # A name is folded and never cut off: names are what a comparison is read by.
    table.add_column("Policy", overflow="fold", width=20)
    for name, _, _ in columns:
        table.add_column(name.removesuffix(" to target"), justify="right", width=width)
    return table


def _medians(rows: Sequence[Row], policy: str, columns: Sequence[Column]) -> list[str]:
    return [shown_median(rows, policy, measure, group) for _, measure, group in columns]


def comparison_page(
    runs: Sequence[Finished], rows: Sequence[Row], tried: Sequence[Tried], targets: Mapping[str, float]
) -> str:
    """The whole page as HTML."""
    parted, finished = _parted(rows), by_setting(runs)
    seeds = sorted({row.seed for row in rows})
    sections = [
        section
        for number, (setting, here) in enumerate(parted.items())
        for section in _of_setting(number, setting, here, finished[setting], targets[setting])
    ]
    if tried:
        sections.append(_tuning(tried))
    sections.append(_the_runs(runs))
    lead = f"{', '.join(policies_of(rows))}; seeds {', '.join(map(str, seeds))}"
    foot = "Written by fedray from the runs below this page; the numbers are in comparison.parquet."
    return document("fedray compare", lead, sections, foot)


def _of_setting(
    number: int, setting: str, rows: Sequence[Row], runs: Sequence[Finished], target: float
) -> list[Section]:
    under = f" ({setting})" if setting else ""
    first = policies_of(rows)[0]
    classes, held = (_by_group(rows, measure) for measure in ("accuracy of class", "accuracy on device"))
    evaluated = any(row.measure == "accuracy" and row.value is not None for row in rows)
    return [
        Section(
            anchor=f"accuracy-{number}",
            title=f"Accuracy at equal cost{under}",
            body=paragraph(
                "Medians over seeds. Equal is what the run that spends least of a seed spends in all. "
                "Energy is by the watts that devices declare, nobody measured it. The "
                f"target is an accuracy of {target:.3f}; > says that most seeds spent all without it."
            )
            + _table(rows, (*_ACCURACIES, *_COSTS))
            + (
                picture(cost_figure(runs), "Accuracy against virtual time, bytes and energy.")
                if evaluated
                else ""
            )
            + paragraph("Lines are medians over seeds, shades the range over them.", quiet=True)
            + _yardsticks(rows),
        ),
        Section(
            anchor=f"paired-{number}",
            title=f"Less {first}, seed by seed{under}",
            body=paragraph(
                "Mean differences of runs with the same seed, and so the same fleet, data and draws, with "
                f"95 % bootstrap intervals over seeds; fewer than {FEWEST_SEEDS} seeds have none."
            )
            + _paired(rows, first),
        ),
        Section(
            anchor=f"fair-{number}",
            title=f"Who takes part, and what it is worth to them{under}",
            body=paragraph(
                "Participation is Jain's index over counted updates of all clients that any run asked: 1 if "
                "all count alike. Accuracies are of the last global state on clients' own test rows."
            )
            + _table(rows, (*_FAIR, *classes))
            + _on_device(rows, held),
        ),
        Section(
            anchor=f"cost-{number}",
            title=f"What it cost{under}",
            body=paragraph(
                "Wasted is the share that clients spent in rounds in which their update did not count."
            )
            + _table(rows, _SPENT),
        ),
    ]


def _yardsticks(rows: Sequence[Row]) -> str:
    """What stands there beside the policies, or that it could not."""
    if not {row.policy for row in rows} & set(YARDSTICKS):
        return paragraph(
            "Every client alone (local_only) and all rows in one place (centralised) do not stand here: the "
            "menu offers no whole model that is sent as it is.",
            quiet=True,
        )
    return paragraph(
        "local_only: each client trains on its own rows, as often as a client is asked on average, and is "
        "tested on its own. centralised: one device has everybody's rows and takes the steps of all clients "
        "of a round. Neither was tuned, and neither is in a budget or a target.",
        quiet=True,
    )


def _by_group(rows: Sequence[Row], measure: str) -> tuple[Column, ...]:
    """A column for each group that has the measure."""
    groups = dict.fromkeys(row.group for row in rows if row.measure == measure)
    return tuple((name, measure, name) for name in groups)


def _on_device(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    if not columns:
        return ""
    return paragraph(
        "And what clients can run by themselves: by device class the accuracy, on the same rows as the whole "
        "model's, of the largest part of it that at least half of the class can train without a server. A "
        "dash is a class of which fewer can."
    ) + _table([row for row in rows if row.policy not in YARDSTICKS], columns)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    present = [c for c in columns if any((r.measure, r.group) == c[1:] for r in rows)]
    return html_table(
        ("Policy", *(name for name, _, _ in present)),
        [
            (
                _name(rows, policy),
                *(shown_median(rows, policy, measure, group) for _, measure, group in present),
            )
            for policy in policies_of(rows)
        ],
    )


def _paired(rows: Sequence[Row], first: str) -> str:
    present = [c for c in _PAIRED if any((r.measure, r.group) == c[1:] for r in rows)]
    return html_table(
        ("Policy", *(name for name, _, _ in present)),
        [
            (
                _name(rows, policy),
                *(_against(rows, policy, first, measure, group) for _, measure, group in present),
            )
            for policy in policies_of(rows)
            if policy != first
        ],
    )


def _against(rows: Sequence[Row], policy: str, first: str, measure: str, group: str) -> str:
    return "" if policy == first else shown_difference(rows, policy, first, measure, group)


def _name(rows: Sequence[Row], policy: str) -> str:
    tuned = {row.tuned for row in rows if row.policy == policy and row.tuned}
    beside = any(row.beside for row in rows if row.policy == policy)
    return policy + "".join(f", {one}" for one in sorted(tuned)) + (" (beside)" if beside else "")


def _parted(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def _tuning(tried: Sequence[Tried]) -> Section:
    cost = (
        f"{len(tried)} runs, {show_seconds(sum(one.virtual_seconds for one in tried))} of virtual time, "
        f"{show_bytes(sum(one.moved_bytes for one in tried))}, "
        f"{show_joules(sum(one.joules for one in tried))} and "
        f"{show_seconds(sum(one.wall_seconds for one in tried))} on this machine"
    )
    return Section(
        anchor="tuning",
        title="Tuning",
        body=paragraph(
            "Every policy had as many trials, with a seed that no compared run has; the best validation "
            f"accuracy was chosen. It cost {cost}, which is in none of the numbers above."
        )
        + html_table(
            ("Policy", "Setting", "Tried", "Validation accuracy", "Chosen"),
            [
                (one.policy, one.setting, one.tuned, one.validation_accuracy, "yes" if one.chosen else "")
                for one in tried
            ],
            words=3,
        ),
    )


def _the_runs(runs: Sequence[Finished]) -> Section:
    return Section(
        anchor="runs",
        title="The runs",
        body=paragraph("Each folder holds records, adapter and report of one run.")
        + html_table(
            ("Policy", "Setting", "Seed", "Rounds", "Folder"),
            [
                (
                    one.trial.entrant.label,
                    said(one.trial.setting),
                    str(one.trial.seed),
                    str(len(one.run.rounds)),
                    str(one.trial.place(Path())),
                )
                for one in runs
            ],
            words=5,
        ),
    )
