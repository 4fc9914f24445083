"""What a check found: each thing tried, whether it held, what a file claims and what is shown of it."""

from dataclasses import dataclass
from typing import Literal

Rung = Literal["laws", "definition", "result"]
RUNGS: tuple[Rung, ...] = ("laws", "definition", "result")


_VERDICTS = {"passed": "passed", "declared": "broken", "failed": "FAILED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: in a word.
        outcome: ``passed``; ``declared`` for a law that a rule says it breaks; ``failed``.
        sentence: what held, or what did not.
        case: in words the smallest case that shows what did not hold; empty if there is none.
    """

    name: str
    outcome: Literal["passed", "declared", "failed"]
    sentence: str
    case: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.outcome != "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a file says of itself.

    Attributes:
        rung: ``laws`` (what the kit shows), ``definition`` (it does what a paper defines) or ``result`` (it
            comes to what the paper reports).
        paper: the paper's arXiv id, or where it appeared.
        checks: test files that show it, relative to the file.
    """

    rung: Rung = "laws"
    paper: str = ""
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What became of a claim above ``laws``: ``shown``, ``failed``, or ``absent`` where nothing shows it."""

    outcome: Literal["shown", "failed", "absent"]
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found of one policy or rule.

    Attributes:
        subject: what was checked.
        findings: of the kit's own checks.
        notes: sentences for whoever reads them.
        claim: the file's.
        shown: what became of it; None for a claim of ``laws``, which is what the findings are.
    """

    subject: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    claim: Claim = Claim()
    shown: Shown | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing that was tried failed; a claim that nothing shows is no failure."""
        failed = self.shown is not None and self.shown.outcome == "failed"
        return all(finding.passed for finding in self.findings) and not failed

    @property
    def rung(self) -> Rung | Literal["none"]:
        """What is shown."""
        if not all(finding.passed for finding in self.findings):
            return "none"
        is_shown = self.shown is not None and self.shown.outcome == "shown"
        return self.claim.rung if is_shown else "laws"

    def to_text(self) -> str:
        """Lines to read; the last one is the rung."""
        width = max(len(finding.name) for finding in self.findings)
        lines = [self.subject]
        for finding in self.findings:
            lines.append(f"  {_VERDICTS[finding.outcome]}  {finding.name:<{width}}  {finding.sentence}")
            if finding.case:
                lines.append(f"  {'':6}  {'':<{width}}  smallest case found: {finding.case}")
        lines += [f"  {note}" for note in self.notes]
        if self.shown is not None:
            paper = self.claim.paper
            of_paper = f" of {'arXiv ' if paper[:4].isdigit() else ''}{paper}" if paper else ""
            words = {"shown": "shown", "failed": "FAILED", "absent": "not shown"}[self.shown.outcome]
            lines.append(f"  claims {self.claim.rung}{of_paper}: {words}, {self.shown.sentence}")
        return "\n".join([*lines, f"rung: {self.rung}"])
