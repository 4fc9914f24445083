"""What a file claims of itself, and whether the tests it names show it.

A policy's or rule's file may say, at its top level or in its class::

    RUNG = "definition"                       # laws (the default), definition or result
    PAPER = "2312.05642"  # arXiv id; "ICLR 2023" for a paper without one
    CHECKS = ("../tests/policies/test_dtfl.py",)   # test files, relative to this one

``laws`` is what the kit shows by itself. ``definition`` says that the file does what a paper defines, and
``result`` that it comes to what the paper reports: for those the tests are run, and without any that pass the
claim is not shown.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fedray.errors import ConfigError
from fedray.testing.findings import RUNGS, Claim, Shown


def claim_of(holders: list[object], file: Path) -> Claim:
    """The claim that the first of these that makes one makes.

    Args:
        holders: the file's module, and its class.
        file: for messages.

    Raises:
        ConfigError: for a rung that there is not, or a claim that is written otherwise.
    """
    said = {}
    for name in ("RUNG", "PAPER", "CHECKS"):
        found = [vars(holder)[name] for holder in holders if name in vars(holder)]
        if found:
            said[name] = found[0]
    rung, paper, checks = said.get("RUNG", "laws"), said.get("PAPER", ""), said.get("CHECKS", ())
    if rung not in RUNGS:
        raise ConfigError(f"RUNG in {file} is one of {', '.join(RUNGS)}, found {rung!r}.")
    if not isinstance(paper, str):
        raise ConfigError(f"PAPER in {file} is a text, an arXiv id such as '2312.05642', found {paper!r}.")
    if not isinstance(checks, tuple) or not all(isinstance(path, str) for path in checks):
        raise ConfigError(f"CHECKS in {file} is a tuple of paths relative to that file, found {checks!r}.")
    return Claim(rung=rung, paper=paper, checks=checks)


def shown_by(claim: Claim, file: Path) -> Shown | None:
    """What the named tests show of a claim, by running them; None for a claim of ``laws``."""
    if claim.rung == "laws":
        return None
    if not claim.paper:
        return Shown(outcome="absent", sentence="for the file names no PAPER")
    if not claim.checks:
        return Shown(outcome="absent", sentence="for the file names no CHECKS, tests that show it")
    paths = [(file.parent / name).resolve() for name in claim.checks]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        return Shown(outcome="absent", sentence=f"for there is no {missing}")
    if find_spec("pytest") is None:
        return Shown(outcome="absent", sentence="for pytest is not installed: pip install 'fedray[testing]'")
    return _run(paths, ", ".join(claim.checks))


def _run(paths: list[Path], names: str) -> Shown:
    quiet = ["-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *quiet, *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    last = next((line for line in reversed(ran.stdout.splitlines()) if line.strip()), "it said nothing")
    return Shown(outcome="failed" if ran.returncode else "shown", sentence=f"by {names}: {last.strip(' =')}")
