"""Checks of a policy: memory, determinism, its contract, and robustness, in a few rounds of drawn fleets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedray.policy import Decision
from fedray.policy_loading import LoadedPolicy, adapt_policy, load_policy
from fedray.testing.asked_policy import Check, Refused, Wrong
from fedray.testing.findings import Finding, Report
from fedray.testing.play import ROUNDS, Load, PolicyCase, play
from fedray.testing.policy_cases import EXTREMES, policy_cases
from fedray.testing.searching import any_case, smallest

# One that draws may answer alike by chance.
_REPEATS = 3
_Answer = Wrong | Refused | Literal["something", "nothing"]
HOLDS: Mapping[Check, str] = {
    "memory": "nobody is given more than its memory, its storage or the server's room",
    "determinism": "the same view, offers and state get the same answer, from a fresh copy too",
    "contract": "answers are what the scheduler takes; a run resumed from its checkpoint decides the same",
    "robustness": "no failure on one client, on none or all that everything fits, or a spread of a million",
}


def check_policy(
    policy: str | Path | object,
    options: Mapping[str, Any] | None = None,
    *,
    examples: int = 50,
) -> Report:
    """Try a policy on drawn fleets and menus, without training.

    Args:
        policy: a shipped one's name, the path of a file, or a function, a class or an object.
        options: of the policy.
        examples: cases drawn; those of `EXTREMES` come beside them.

    Raises:
        PolicyError: the policy cannot be loaded.
    """

    def load() -> LoadedPolicy:
        return (
            load_policy(policy, options) if isinstance(policy, str | Path) else adapt_policy(policy, options)
        )

    loaded = load()
    tried = _Tried(load, examples)
    return Report(
        subject=f"policy {loaded.name} ({loaded.file})",
        findings=(*(tried.finding(check) for check in HOLDS), tried.use()),
    )


class _Tried:
    """A policy on the same drawn cases for everything; made smaller, one thing at a time, if any is wrong."""

    def __init__(self, load: Load, examples: int) -> None:
        self._load, self._examples = load, examples
        self._tried: dict[PolicyCase, _Answer] = {}
        self._clean = not any_case(
            policy_cases(), lambda case: self._wrong(case) is not None, examples=examples, known=EXTREMES
        )

    def finding(self, check: Check) -> Finding:
        """Whether one of the things that a policy must do holds."""
        found = None if self._clean else self._smallest(check)
        if found is None:
            return Finding(name=check, outcome="passed", sentence=HOLDS[check])
        return Finding(name=check, outcome="failed", sentence=str(self._tried[found]), case=str(found))

    def use(self) -> Finding:
        """Whether there was a case in which it gave anybody anything."""
        answers = list(self._tried.values())
        refusals = [answer for answer in answers if isinstance(answer, Refused)]
        idle = all(isinstance(answer, Refused) or answer == "nothing" for answer in answers)
        count = f"{len(answers)} fleets and menus, {ROUNDS} rounds each"
        words = f"; it refuses {len(refusals)} of them, as in: {refusals[0]}" if refusals else ""
        tried = f"{'gives nobody anything' if idle else 'tried'} on {count}{words}"
        return Finding(name="use", outcome="failed" if idle else "passed", sentence=tried)

    def _smallest(self, check: Check) -> PolicyCase | None:
        def wanted(case: PolicyCase) -> bool:
            wrong = self._wrong(case)
            return wrong is not None and wrong.check == check

        # A play takes longer than a sum, so patience grows with what was asked for.
        tries = 4 * self._examples
        return smallest(policy_cases(), wanted, examples=self._examples, known=EXTREMES, tries=tries)

    def _wrong(self, case: PolicyCase) -> Wrong | None:
        if case not in self._tried:
            self._tried[case] = _answer(self._load, case)
        answer = self._tried[case]
        return answer if isinstance(answer, Wrong) else None


def _answer(load: Load, case: PolicyCase) -> _Answer:
    """What comes of a case: a mistake, a refusal, or whether anybody was given anything."""
    try:
        decisions = _held_to_itself(load, case)
    except (Refused, Wrong) as answer:
        return answer
    return "something" if any(any(decision.assignments) for decision in decisions) else "nothing"


def _held_to_itself(load: Load, case: PolicyCase) -> tuple[Decision, ...]:
    first = play(load, case)
    after_a_crash = _difference(first, play(load, case, resumed=True))
    if not after_a_crash:
        return first
    for _ in range(_REPEATS):
        if difference := _difference(first, play(load, case)):
            raise Wrong("determinism", f"the same inputs get two answers: {difference}")
    raise Wrong(
        "contract",
        "a run resumed from its checkpoint decides otherwise, so something is remembered outside the state: "
        f"{after_a_crash}",
    )


def _difference(one: tuple[Decision, ...], other: tuple[Decision, ...]) -> str:
    """The first client that two plays treat unlike; nothing if there is none."""
    for number, (left, right) in enumerate(zip(one, other, strict=True), start=1):
        if left.client_ids != right.client_ids:
            return f"round {number} has clients {list(left.client_ids)} and {list(right.client_ids)}"
        for client, mine, theirs in zip(left.client_ids, left.assignments, right.assignments, strict=True):
            if mine != theirs:
                return f"round {number} gives client {client} {mine or 'nothing'} and {theirs or 'nothing'}"
    return ""
