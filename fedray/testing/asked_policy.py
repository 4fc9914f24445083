"""A policy as a check asks it: refusals are told from mistakes, and what it is given is looked after."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from fedray.assignment import Assignment
from fedray.errors import PolicyError
from fedray.observable import Observable
from fedray.policy import Choice, Cohort, Offers, Pace, Selected, State, View
from fedray.policy_loading import LoadedPolicy

Check = Literal["memory", "determinism", "contract", "robustness"]


class Refused(Exception):
    """The policy says, in words of its own, that it does not do this: no mistake."""


class Wrong(Exception):
    """The policy does what it may not."""

    def __init__(self, check: Check, sentence: str) -> None:
        """Args: ``check`` that fails; what happened."""
        super().__init__(sentence)
        self.check = check


class AskedPolicy:
    """A `fedray.policy.Policy` over a loaded one."""

    def __init__(self, policy: LoadedPolicy) -> None:
        """Args: ``policy`` as loaded, of this play alone."""
        self._policy = policy
        self.aggregation: str | None = policy.aggregation
        self.pace: Pace | None = policy.pace
        self.aggregation_interval: int | None = policy.aggregation_interval
        self.local_rules: Mapping[str, float] = policy.local_rules
        self.observables: tuple[Observable, ...] = policy.observables

    def menu(self, view: View) -> Sequence[Assignment]:
        """See `fedray.policy.Policy.menu`."""
        try:
            return self._policy.menu(view)
        except PolicyError as error:
            raise self._told(error) from error

    def select(self, view: View, state: State) -> Selected:
        """See `fedray.policy.Policy.select`."""
        try:
            return self._policy.select(view, state)
        except PolicyError as error:
            raise self._told(error) from error

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Choice, State]:
        """See `fedray.policy.Policy.assign`; whatever it was given must be as it was."""
        before = _arrays(offers) | _arrays(cohort) | _arrays(cohort.device)
        copies = {name: array.copy() for name, array in before.items()}
        try:
            answer = self._policy.assign(cohort, offers, state)
        except PolicyError as error:
            raise self._told(error) from error
        for name, array in before.items():
            if not np.array_equal(array, copies[name]):
                raise Wrong("contract", f"assign writes into {name}, which it was given to read")
        return answer

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """See `fedray.policy.Policy.observe`."""
        try:
            return self._policy.observe(records, state)
        except PolicyError as error:
            raise self._told(error) from error

    def _told(self, error: PolicyError) -> Exception:
        """A refusal is raised in the policy's own file, or by `Offers.need_cuts` for it."""
        if error.__cause__ is not None:
            return Wrong("robustness", str(error))
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = last.filename == self._policy.file or last.name == Offers.need_cuts.__name__
        return Refused(str(error)) if own else Wrong("contract", str(error))


def _arrays(value: object) -> dict[str, np.ndarray[Any, Any]]:
    name_of = type(value).__name__.lower()
    found = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    return {f"{name_of}.{name}": array for name, array in found.items() if isinstance(array, np.ndarray)}
