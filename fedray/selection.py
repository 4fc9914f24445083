"""Who is asked in a round, as a file of its own that goes with any policy for who gets what.

A selection's file holds one of two forms::

    def select(view, *, option=1): ...            # a function; ids, ascending or not

    class Anything:                               # or a class; only select is needed
        pace = Pace(goal=10)
        observables = {"squared_loss"}
        def __init__(self, *, option=1): ...
        def select(self, view, state): ...        # ids, or (ids, state)
        def observe(self, records, state): ...

A ``select`` of two inputs is given what the selection remembers; that is apart from what the policy
remembers, and is checkpointed with it. What it may know is in `fedray.policy.View`.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.assignment import Assignment
from fedray.cost import Ints
from fedray.errors import ConfigError, PolicyError
from fedray.observable import OBSERVABLES, Observable
from fedray.policy import Choice, Cohort, Offers, Pace, Selected, State, View
from fedray.policy_file import (
    OF_A_CLASS,
    OF_A_FUNCTION,
    Origin,
    blamed,
    check_options,
    count_inputs,
    find_file,
    the_only,
)
from fedray.policy_loading import LoadedPolicy, adapt_policy
from fedray.python_file import run_file
from fedray.shipped import shipped

_INPUTS = ("view", "state")


class LoadedSelection:
    """A file's function or class, asked so that its mistakes are named."""

    def __init__(self, origin: Origin, found: Any, options: Mapping[str, Any]) -> None:
        """Args: ``found`` in its file. Raises PolicyError for options that are not its own."""
        self.name = origin.name
        self._origin = origin
        is_class = inspect.isclass(found)
        check_options(origin, found, options, OF_A_CLASS if is_class else OF_A_FUNCTION)
        with blamed(origin, "__init__"):
            made = found(**options) if is_class else None
        self._select = functools.partial(found, **options) if made is None else made.select
        self._observe = made.observe if made is not None and hasattr(made, "observe") else None
        self._takes_state = count_inputs(origin, "select", self._select, _INPUTS) == len(_INPUTS)
        self.pace: Pace | None = made.pace if made is not None and hasattr(made, "pace") else None
        asked = made.observables if made is not None and hasattr(made, "observables") else ()
        unknown = [name for name in asked if name not in OBSERVABLES]
        if unknown:
            raise PolicyError(
                f"{origin} asks clients for {unknown[0]!r}; observables are {', '.join(OBSERVABLES)}."
            )
        self.observables: frozenset[Observable] = frozenset(asked)

    @property
    def learns(self) -> bool:
        """Whether it learns from clients' records."""
        return self._observe is not None

    def select(self, view: View, state: State) -> tuple[Ints | Sequence[int], State]:
        """Its ids, unchecked, and what it remembers from now on."""
        with blamed(self._origin, "select"):
            answer = self._select(view, state) if self._takes_state else self._select(view)
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
            return answer
        return answer, state

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Its own, or the state as it was. Raises PolicyError for what is no state."""
        if self._observe is None:
            return state
        with blamed(self._origin, "observe"):
            learnt = self._observe(records, state)
        if not isinstance(learnt, Mapping):
            raise PolicyError(
                f"{self._origin} ({self._origin.file}): observe returns the state, a mapping; "
                f"found {type(learnt).__name__}."
            )
        return learnt


class SelectedBy:
    """A `fedray.policy.Policy` of a selection that says who and a policy that says what."""

    def __init__(self, selection: LoadedSelection, policy: LoadedPolicy) -> None:
        """See `selected_by`."""
        self.name = f"{policy.name} selected by {selection.name}"
        self._selection, self._policy = selection, policy
        self.aggregation = policy.aggregation
        self.pace = policy.pace if selection.pace is None else selection.pace
        self.aggregation_interval = policy.aggregation_interval
        self.local_rules = policy.local_rules
        asked = selection.observables | set(policy.observables)
        self.observables: tuple[Observable, ...] = tuple(name for name in OBSERVABLES if name in asked)

    @property
    def learns(self) -> bool:
        """Whether one of the two learns from clients' records."""
        return self._selection.learns or self._policy.learns

    def menu(self, view: View) -> Sequence[Assignment]:
        """The policy's."""
        return self._policy.menu(view)

    def select(self, view: View, state: State) -> Selected:
        """The selection's."""
        ids, own = self._selection.select(view, state.get("selection", {}))
        return ids, {**state, "selection": own}

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Choice, State]:
        """The policy's."""
        choice, own = self._policy.assign(cohort, offers, state.get("assignment", {}))
        return choice, {**state, "assignment": own}

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """Both learn, each for itself."""
        return {
            "selection": self._selection.observe(records, state.get("selection", {})),
            "assignment": self._policy.observe(records, state.get("assignment", {})),
        }


def load_selection(source: str | Path, options: Mapping[str, Any] | None = None) -> LoadedSelection:
    """The selection of a file.

    Args:
        source: a shipped one's name (``"oort"``), or the path of a Python file.
        options: keyword arguments of the class or the function.

    Raises:
        PolicyError: there is no such file, it holds none or several, or an option is not its own.
    """
    file = find_file(str(source), shipped("policies") / "selection", "selection")
    origin = Origin(name=file.stem, file=str(file), kind="selection")
    with blamed(origin, "its import"):
        module = run_file(file, "selection")
    return LoadedSelection(origin, the_only(module, origin, "select", "view"), options or {})


def selected_by(selection: LoadedSelection, policy: LoadedPolicy | object) -> SelectedBy:
    """A policy whose clients a selection chooses.

    Raises:
        ConfigError: the policy chooses clients itself, or both set the pace.
    """
    loaded = policy if isinstance(policy, LoadedPolicy) else adapt_policy(policy)
    if loaded.selects:
        raise ConfigError(
            f"selection: {selection.name} has no effect with the policy {loaded.name!r}, which chooses "
            "clients itself; drop the one or the other."
        )
    if selection.pace is not None and loaded.pace is not None:
        raise ConfigError(
            f"The selection {selection.name!r} and the policy {loaded.name!r} both say when a round closes; "
            "choose another of one of them."
        )
    return SelectedBy(selection, loaded)
