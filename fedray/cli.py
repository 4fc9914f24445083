"""The command line: a thin skin over `fedray.api`.

Exit codes: 0 done; 1 an error of fedray's own, with its traceback, a doctor who misses something, or a check
that fails; 2 a mistake that the user can mend, in one sentence; 130 interrupted.
"""

import errno
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import fedray
from fedray import api
from fedray.config.loading import lists_of, options_of
from fedray.errors import FedrayError
from fedray.terminal import left_line, shown_rounds, shown_trials

OK, MISTAKE, INTERRUPTED = 0, 2, 130
# What the machine refuses and the user can mend: a full disk, a folder without permission, a wrong path.
_MENDABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How a plan or an examination is printed."""

    TABLE = "table"
    JSON = "json"


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as examples/quickstart.yaml.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `fedray run` wrote.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one key, the value in YAML; may be given again, later ones win.",
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=[...]", help="Values under which all are compared; may be given again."),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Join a running Ray cluster; short for --set ray.address=..."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedray {fedray.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train one pretrained model across many unequal devices: every client gets what fits it.

    A first run, on real weights and real text, without a download:

        fedray run examples/quickstart.yaml --out runs/first

    What would each device get, and what would it cost? (nothing is trained)

        fedray plan examples/quickstart.yaml
    """


@app.command()
def run(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for everything the run leaves.")],
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Train, and leave records, adapter and report in a folder.

    Another policy, without Ray:

        fedray run CONFIG --out DIR --set policy=drop_weak --set runtime=local

    DIR holds config.yaml (resolved), rounds.parquet, clients.parquet, adapter/ (for PEFT), checkpoint/,
    environment.json and report.html.
    """
    given = _with_address(overrides, address)
    with shown_rounds() as (show, watch):
        result = api.run(config, out=out, overrides=given, show=show, watch=watch)
    typer.echo(left_line(result.out, result.report))


@app.command()
def plan(
    config: ConfigFile,
    output: Annotated[
        Format, typer.Option("--format", help="A table to read, or JSON to compute with.")
    ] = Format.TABLE,
    overrides: Overrides = None,
) -> None:
    """Price the fleet and show what the policy would give each client, without training.

    As JSON, for another menu:

        fedray plan CONFIG --format json --set 'menu.ranks=[2, 16]'
    """
    result = api.plan(config, overrides=overrides or ())
    typer.echo(result.to_json() if output is Format.JSON else result.to_table())


@app.command()
def report(out: RunFolder) -> None:
    """Write report.html of a run again, also of one that is unfinished."""
    typer.echo(api.write_report(out))


@app.command()
def resume(out: RunFolder) -> None:
    """Continue an interrupted run; the result is that of an unbroken one."""
    with shown_rounds() as (show, watch):
        result = api.resume(out, show=show, watch=watch)
    typer.echo(left_line(result.out, result.report))


@app.command()
def simulate(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for what the simulation leaves.")],
    overrides: Overrides = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Take losses and accuracies of this trained run; decisions must agree."
        ),
    ] = None,
) -> None:
    """Play the rounds on the virtual clock without training: seconds, joules, bytes, who takes part.

    A million devices, 1000 of them a round:

        fedray simulate examples/million.yaml --out DIR

    Another policy for who is asked, and a fleet of your own size:

        fedray simulate CONFIG --out DIR --set selection=oort --set fleet.num_clients=10000

    DIR holds config.yaml, rounds.parquet, clients.parquet, environment.json and report.html as a run's does,
    with accuracy and loss empty.
    """
    with shown_rounds() as (show, _):
        result = api.simulate(config, out=out, overrides=overrides or (), show=show, replay=replay)
    typer.echo(left_line(result.out, result.report))


@app.command()
def compare(
    config: ConfigFile,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder for the runs and what they say together.")
    ],
    policies: Annotated[
        str, typer.Option(metavar="A,B,...", help="Names or files; differences are from the first.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... that every policy runs with.")] = 5,
    grid: Grid = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=[...]",
            help="Values to choose from on validation rows, for each policy alone; may be given again.",
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="The accuracy whose cost is asked for; 95 % of the best's if absent.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Run policies on the same fleet, data and draws, and tell their differences seed by seed.

    Two policies beside those that any has to beat (drop_weak, everybody_smallest):

        fedray compare CONFIG --out DIR --policies hetlora,mine.py --seeds 3

    The same under two kinds of data:

        ... --grid 'data.partitioner.alpha=[0.1, 1]'

    DIR holds comparison.html, comparison.parquet (a number a row) and a folder for each run. The same command
    again goes on with a comparison that was broken off.
    """
    with shown_trials() as (show, watch):
        result = api.compare(
            config,
            out=out,
            policies=[name.strip() for name in policies.split(",") if name.strip()],
            seeds=seeds,
            grid=lists_of(grid or ()),
            tune=lists_of(tune or ()),
            target=target,
            overrides=overrides or (),
            show=show,
            watch=watch,
        )
    typer.echo(result.to_text())
    typer.echo(f"Report: {result.report}")


@app.command()
def export(
    run: RunFolder,
    client: Annotated[int, typer.Option(min=0, help="Its id, as in clients.parquet.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for the model.")],
) -> None:
    """Write what one client could run of the model as an ordinary Hugging Face folder.

    The part that it was last given: its blocks, its width, its weights rounded as they were, LoRA merged. A
    classifier's head lies beside, in head.safetensors.

        fedray export runs/first --client 3 --out models/client_3
    """
    done = api.export(run, client=client, out=out)
    typer.echo(f"{done.folder}: {done.assignment}")


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(metavar="NAME", help="A policy, an aggregation, or the path of a .py file.")
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of the policy or the rule, the value in YAML; may be repeated."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Cases drawn for each thing that is tried.")] = 50,
) -> None:
    """Try a policy or an aggregation rule of your own, and say what is shown of it; exit code 1 if it fails.

    A policy plays a few rounds on drawn fleets and menus, nothing is trained; a rule is held to its laws.
    The smallest case that shows a mistake is printed. A file's RUNG, PAPER and CHECKS say what it claims
    beyond that, and its CHECKS are run.

        fedray check policies/mine.py --option patience=2
    """
    reports = api.check(target, options=options_of(option or ()), examples=examples)
    typer.echo("\n\n".join(report.to_text() for report in reports))
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


@app.command()
def doctor(
    output: Annotated[
        Format, typer.Option("--format", help="A table to read, or JSON to compute with.")
    ] = Format.TABLE,
) -> None:
    """Measure this machine, and say what is missing; exit code 1 if fedray cannot run without it."""
    found = api.examine()
    if output is Format.JSON:
        typer.echo(found.to_json())
    else:
        from rich.console import Console

        from fedray.doctor import show

        show(found, Console())
    if found.missing:
        raise typer.Exit(1)


def _with_address(overrides: Sequence[str] | None, address: str | None) -> list[str]:
    joined = [f"ray.address={address}"] if address is not None else []
    return [*(overrides or ()), *joined]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without arguments, those of the process."""
    try:
        app(arguments, standalone_mode=True)
    except SystemExit as stop:
        return int(stop.code or OK)
    except FedrayError as mistake:
        return _said(str(mistake))
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        return _said(f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}.")
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


def _said(sentences: str) -> int:
    for sentence in sentences.splitlines():
        print(f"fedray: {sentence}", file=sys.stderr)
    return MISTAKE
