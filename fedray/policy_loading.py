"""Policies from files: found by name or path, given their options, asked so that their mistakes are named.

A policy's file holds one of two forms::

    def assign(cohort, offers, *, option=1): ...          # a function

    class Anything:                                       # or a class; only assign is needed
        aggregation = "factor_mean"
        pace = Pace(goal=10)
        aggregation_interval = 5
        local_rules = {"proximal_mu": 0.01}
        observables = {"fisher"}
        def __init__(self, *, option=1): ...
        def menu(self, view): ...
        def select(self, view, state): ...
        def assign(self, cohort, offers, state): ...
        def observe(self, records, state): ...

An ``assign`` that takes the state returns ``(choice, state)``; one that does not returns the choice.
Beside the function the file may say ``aggregation``, ``pace``, ``aggregation_interval``, ``local_rules``
and ``observables`` as the class does.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedray.assignment import Assignment
from fedray.errors import PolicyError
from fedray.observable import LOCAL_RULES, OBSERVABLES, Observable
from fedray.policy import Choice, Cohort, Offers, Pace, Policy, Selected, State, View
from fedray.policy_file import (
    OF_A_CLASS,
    OF_A_FUNCTION,
    Origin,
    blamed,
    check_options,
    count_inputs,
    file_of,
    find_file,
    the_only,
)
from fedray.python_file import run_file
from fedray.shipped import shipped

_INPUTS = ("cohort", "offers", "state")
# Before the name of a policy that lies in no file.
_IN_PYTHON = "python:"


class LoadedPolicy:
    """A `fedray.policy.Policy` over a function or an object that may leave out all but ``assign``.

    Whatever the policy's own code raises becomes a PolicyError that names its file and line.
    """

    def __init__(self, source: Origin, assign: Callable[..., Any], policy: object) -> None:
        """Args: ``assign`` with its options bound; ``policy`` is asked for everything else, if it has it."""
        self.name = source.name
        self.file = source.file
        self._source = source
        self._policy = policy
        self._assign = assign
        self._takes_state = count_inputs(source, "assign", assign, _INPUTS) == 3
        self.aggregation: str | None = self._declared("aggregation", str)
        self.pace: Pace | None = self._declared("pace", Pace)
        self.aggregation_interval: int | None = self._interval()
        self.local_rules: Mapping[str, float] = self._local_rules()
        self.observables: tuple[Observable, ...] = self._observables()

    def menu(self, view: View) -> Sequence[Assignment]:
        """The policy's own, or the configuration's."""
        if not self._has("menu"):
            return view.menu
        menu: Sequence[Assignment] = self._ask("menu", view)
        return menu

    @property
    def selects(self) -> bool:
        """Whether it chooses clients itself."""
        return self._has("select")

    @property
    def learns(self) -> bool:
        """Whether it learns from clients' records."""
        return self._has("observe")

    def select(self, view: View, state: State) -> Selected:
        """The policy's own, or a uniform sample."""
        if not self.selects:
            return view.sample()
        selected: Selected = self._ask("select", view, state)
        return selected

    def assign(self, cohort: Cohort, offers: Offers, state: State) -> tuple[Choice, State]:
        """The policy's answer, unchecked, and what it remembers from now on."""
        with blamed(self._source, "assign"):
            if not self._takes_state:
                return self._assign(cohort, offers), state
            answer = self._assign(cohort, offers, state)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}): assign takes the state, so it returns (choice, state), "
                f"the state a mapping; found {type(answer).__name__}."
            )
        return answer

    def observe(self, records: Sequence[Mapping[str, Any]], state: State) -> State:
        """The policy's own, or the state as it was."""
        if not self._has("observe"):
            return state
        learnt = self._ask("observe", records, state)
        if not isinstance(learnt, Mapping):
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}): observe returns the state, a mapping; "
                f"found {type(learnt).__name__}."
            )
        return learnt

    def _has(self, method: str) -> bool:
        """Whether the policy has its own; a class that inherits the Protocol has its empty methods."""
        if not hasattr(self._policy, method):
            return False
        found = getattr(self._policy, method)
        return not (inspect.ismethod(found) and found.__func__ is getattr(Policy, method))

    def _ask(self, method: str, *inputs: object) -> Any:
        with blamed(self._source, method):
            return getattr(self._policy, method)(*inputs)

    def _declared(self, attribute: str, kind: type) -> Any:
        value = getattr(self._policy, attribute) if hasattr(self._policy, attribute) else None
        if value is not None and not isinstance(value, kind):
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}): "
                f"{attribute} is a {kind.__name__} or absent, not {value!r}."
            )
        return value

    def _interval(self) -> int | None:
        """In rounds. Raises PolicyError for less than one."""
        rounds: int | None = self._declared("aggregation_interval", int)
        if rounds is not None and rounds < 1:
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}): aggregation_interval is 1 round or more, not {rounds}."
            )
        return rounds

    def _local_rules(self) -> Mapping[str, float]:
        """Raises PolicyError for an unknown one, or what is no weight."""
        rules: Mapping[str, float] = self._declared("local_rules", Mapping) or {}
        for name, weight in rules.items():
            if name not in LOCAL_RULES or not isinstance(weight, int | float) or weight < 0:
                raise PolicyError(
                    f"Policy {self.name!r} ({self.file}): local_rules gives weights of 0 or more to "
                    f"{', '.join(LOCAL_RULES)}; found {name!r}: {weight!r}."
                )
        return rules

    def _observables(self) -> tuple[Observable, ...]:
        """In one order, whatever a set's is: they cross the wire. Raises PolicyError for an unknown one."""
        asked = self._policy.observables if hasattr(self._policy, "observables") else ()
        if not isinstance(asked, set | frozenset | list | tuple):
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}): observables is a set of {', '.join(OBSERVABLES)}, "
                f"not {asked!r}."
            )
        unknown = [name for name in asked if name not in OBSERVABLES]
        if unknown:
            raise PolicyError(
                f"Policy {self.name!r} ({self.file}) asks clients for {unknown[0]!r}; observables are "
                f"{', '.join(OBSERVABLES)}."
            )
        return tuple(name for name in OBSERVABLES if name in asked)


def name_in_python(policy: object) -> str:
    """What a configuration calls a policy that was given in Python; nothing can be loaded by it."""
    return f"{_IN_PYTHON}{adapt_policy(policy).name}"


def load_policy(source: str | Path, options: Mapping[str, Any] | None = None) -> LoadedPolicy:
    """The policy of a file.

    Args:
        source: the name of a shipped policy (``"drop_weak"``), or the path of a Python file.
        options: keyword arguments of the class or the function, as the configuration has them.

    Raises:
        PolicyError: if there is no such file, it cannot be imported, it holds no policy or several, or
            an option is not one of its own.
    """
    if str(source).startswith(_IN_PYTHON):
        name = str(source).removeprefix(_IN_PYTHON)
        raise PolicyError(
            f"The policy {name!r} was given in Python and lies in no file that could be loaded; go on in "
            f"Python with fedray.resume(out, policy={name}), or name a policy or the path of its file."
        )
    file = find_file(str(source), shipped("policies"), "policy")
    origin = Origin(name=file.stem, file=str(file))
    with blamed(origin, "its import"):
        module = run_file(file, "policy")
    found = the_only(module, origin, "assign", "cohort, offers")
    if inspect.isclass(found):
        return _from_class(origin, found, dict(options or {}))
    return _from_function(origin, found, dict(options or {}), declares=module)


def adapt_policy(policy: object, options: Mapping[str, Any] | None = None) -> LoadedPolicy:
    """A function, a class or an object as a policy: what a notebook passes instead of a file's name.

    Raises:
        PolicyError: if it has no ``assign``, or an option is not one of its own.
    """
    if isinstance(policy, str | Path):
        raise PolicyError(
            f"policy= takes a function, a class or an object; a name or a path goes into the configuration, "
            f'or overrides=["policy={policy}"].'
        )
    given = dict(options or {})
    named = policy if inspect.isclass(policy) or inspect.isfunction(policy) else type(policy)
    origin = Origin(name=named.__name__, file=file_of(named))
    if inspect.isclass(policy):
        return _from_class(origin, policy, given)
    if hasattr(policy, "assign"):
        if given:
            raise PolicyError(
                f"Policy {origin.name!r} is already made: give {', '.join(given)} to its class."
            )
        return LoadedPolicy(origin, policy.assign, policy)
    if not callable(policy):
        raise PolicyError(
            f"A policy is a function assign(cohort, offers), or has that method; found {policy!r}."
        )
    return _from_function(origin, policy, given, declares=policy)


def _from_class(origin: Origin, made_by: type, options: dict[str, Any]) -> LoadedPolicy:
    if not hasattr(made_by, "assign"):
        raise PolicyError(f"Policy {origin.name!r} ({origin.file}) has no method assign(cohort, offers).")
    check_options(origin, made_by, options, OF_A_CLASS)
    with blamed(origin, "__init__"):
        policy = made_by(**options)
    return LoadedPolicy(origin, policy.assign, policy)


def _from_function(
    origin: Origin, assign: Callable[..., Any], options: dict[str, Any], declares: object
) -> LoadedPolicy:
    check_options(origin, assign, options, OF_A_FUNCTION)
    # Of the module only what it declares counts: a function that it imported is not its answer.
    declared = ("aggregation", "pace", "aggregation_interval", "local_rules", "observables")
    facts = {name: getattr(declares, name) for name in declared if hasattr(declares, name)}
    return LoadedPolicy(origin, functools.partial(assign, **options), SimpleNamespace(**facts))
