"""The page: a run's folder in, ``report.html`` beside its records out."""

from pathlib import Path

from fedray.errors import ConfigError
from fedray.report.assigned import memory, mix
from fedray.report.cuts import cuts
from fedray.report.fleet import fleet, on_device
from fedray.report.markup import document
from fedray.report.phases import tells_phases
from fedray.report.protection import is_protected, protection
from fedray.report.reading import Run, read_run
from fedray.report.sections import configuration, headline, outcomes, participation, progress
from fedray.report.tallies import device_classes, given, has_cuts, spent
from fedray.report.timeline import held_back, timeline
from fedray.whole_file import replaced


def write_report(out: Path) -> Path:
    """Write ``report.html`` into the folder of a run, from what lies there.

    Raises:
        ConfigError: a file is missing or half-written, or the page cannot be written.
    """
    text = page(read_run(out))
    path = out / "report.html"
    try:
        # A full disk leaves the report of before and never half a page.
        with replaced(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); make room or give another folder."
        ) from error
    return path


def page(run: Run) -> str:
    """The whole page as HTML."""
    cost, givens, classes = spent(run), given(run), device_classes(run)
    sections = [
        headline(run, cost),
        progress(run, cost),
        *([fleet(run)] if run.devices else []),
        *([held_back(run), timeline(run)] if tells_phases(run) else []),
        mix(givens, classes),
        *([cuts(run, classes)] if has_cuts(run) else []),
        memory(givens),
        *([protection(run)] if is_protected(run) else []),
        *([participation(classes)] if classes else []),
        *([on_device(run)] if run.classes else []),
        outcomes(run),
        configuration(run),
    ]
    foot = "Written by fedray from rounds.parquet, clients.parquet and evaluations.parquet beside this page."
    return document(f"fedray run: {run.folder.resolve().name}", _lead(run), sections, foot)


def _lead(run: Run) -> str:
    """What was run, in one line, as far as the configuration says."""
    parts = [
        (key, _name(run.config.get(key)))
        for key in ("policy", "task", "model", "data", "fleet", "aggregation")
    ]
    said = [f"{key} {name}" for key, name in parts if name]
    seed = run.config.get("seed")
    return (
        ", ".join([*said, *([f"seed {seed}"] if seed is not None else [])]) or "no configuration was recorded"
    )


def _name(section: object) -> str:
    if isinstance(section, dict):
        return str(section.get("name") or section.get("source") or "")
    return str(section or "")
