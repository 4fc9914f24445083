"""Checks of an aggregation rule: the laws it keeps hold, and those it says it breaks are seen to break."""

from collections.abc import Callable

from fedray.aggregation.rule import LAWS, Aggregation
from fedray.errors import FedrayError
from fedray.testing.findings import Finding, Report
from fedray.testing.law_cases import MIXED, LawCase, law_cases
from fedray.testing.laws import CHECKS, Trial, broken_laws, mistake
from fedray.testing.searching import any_case, smallest

_TRIES = 300


def check_rule(
    rule: Aggregation,
    *,
    examples: int = 50,
) -> Report:
    """Try a rule on drawn rounds.

    Args:
        rule: any `fedray.aggregation.rule.Aggregation`.
        examples: rounds drawn for each thing that is tried.
    """
    tried = _Tried(rule, examples)
    return Report(
        subject=f"aggregation {rule.name}",
        findings=(tried.soundness(), *(tried.law(law) for law in LAWS)),
    )


class _Tried:
    """A rule on the same drawn rounds for everything; made smaller, one thing at a time, if any is wrong."""

    def __init__(self, rule: Aggregation, examples: int) -> None:
        self._rule, self._examples = rule, examples
        self._seen: set[str] = set()
        self._clean = not any_case(law_cases(), self._is_wrong, examples=examples, known=(MIXED,))

    def soundness(self) -> Finding:
        """Whether it can be asked at all, and does what every rule must."""
        found = None if self._clean else self._smallest(lambda case: bool(self._complaint(case)))
        if found is None:
            words = "sends, sums and gives a new state, the same one every time"
            return Finding(name="rule", outcome="passed", sentence=words)
        sentence = self._complaint(found) or ""
        return Finding(name="rule", outcome="failed", sentence=sentence, case=str(found))

    def law(self, law: str) -> Finding:
        """Whether a law holds, or is seen to break where the rule says so."""
        if law in self._rule.breaks:
            seen = law in self._seen or self._smallest(lambda case: self._breaks(law, case)) is not None
            words = "as the rule says" if seen else "so the rule says, and never seen to be"
            return Finding(name=law, outcome="declared", sentence=f"{words}: {LAWS[law]}")
        found = None if self._clean else self._smallest(lambda case: self._breaks(law, case))
        if found is None:
            return Finding(name=law, outcome="passed", sentence=LAWS[law])
        words = "does not hold, and the rule's breaks do not say so"
        return Finding(name=law, outcome="failed", sentence=f"{words}: {LAWS[law]}", case=str(found))

    def _smallest(self, wanted: Callable[[LawCase], bool]) -> LawCase | None:
        return smallest(law_cases(), wanted, examples=self._examples, known=(MIXED,), tries=_TRIES)

    def _is_wrong(self, case: LawCase) -> bool:
        if self._complaint(case):
            return True
        broken = broken_laws(Trial(self._rule, case))
        self._seen |= broken
        return bool(broken - self._rule.breaks)

    def _breaks(self, law: str, case: LawCase) -> bool:
        """A rule that fails or is no rule breaks no law: that is said once."""
        return not self._complaint(case) and not CHECKS[law](Trial(self._rule, case))

    def _complaint(self, case: LawCase) -> str | None:
        rule = self._rule
        if unknown := rule.breaks - LAWS.keys():
            return f"breaks names {', '.join(sorted(unknown))}, and the laws are {', '.join(LAWS)}"
        if rule.exact != ("L6" not in rule.breaks) or rule.lossy != ("L1" in rule.breaks):
            return "exact and lossy say something else than breaks: exact is to keep L6, lossy to break L1"
        try:
            return mistake(Trial(rule, case))
        except FedrayError as refusal:
            return f"it refuses what it sent itself: {refusal}"
        except Exception as error:
            return f"it fails with {type(error).__name__}: {error}"
