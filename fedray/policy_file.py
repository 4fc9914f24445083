"""What files of policies and selections share: found by name or path, given options, blamed for mistakes."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any

from fedray.errors import FedrayError, PolicyError
from fedray.python_file import place_of

OF_A_CLASS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
OF_A_FUNCTION = (Parameter.KEYWORD_ONLY,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a message calls a policy.

    Attributes:
        name: its own; ``file`` where it is.
        kind: ``policy`` or ``selection``.
    """

    name: str
    file: str
    kind: str = "policy"

    def __str__(self) -> str:
        """``Policy 'mine'``."""
        return f"{self.kind.capitalize()} {self.name!r}"


def find_file(source: str, folder: Path, kind: str) -> Path:
    """A Python file by path, or one of a folder's or its ``unverified`` by name. Raises PolicyError."""
    if source.endswith(".py") or "/" in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise PolicyError(f"No {kind} at {source!r}: there is no such file in {Path.cwd()}.")
        return path.resolve()
    known = named_files(folder)
    if source in known:
        return known[source]
    names = sorted(known)
    near = difflib.get_close_matches(source, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise PolicyError(f"No {kind} is named {source!r}; shipped are {', '.join(names)}, or give a path.{hint}")


def named_files(folder: Path) -> dict[str, Path]:
    """The files of a folder and of its ``unverified`` by name: of methods known from abstracts alone."""
    return {file.stem: file for place in (folder / "unverified", folder) for file in place.glob("[a-z]*.py")}


def the_only(module: ModuleType, origin: Origin, method: str, inputs: str) -> Any:
    """A file's one function called ``method``, or its one class that has it. Raises PolicyError."""
    own = [value for name, value in vars(module).items() if not name.startswith("_")]
    found = [
        value
        for value in own
        if inspect.isclass(value) and value.__module__ == module.__name__ and hasattr(value, method)
    ]
    if hasattr(module, method):
        found.append(vars(module)[method])
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found) or "nothing of the kind"
        raise PolicyError(
            f"{origin.file} must hold one {origin.kind}, a function {method}({inputs}) or a class with that "
            f"method; found {names}."
        )
    return found[0]


def count_inputs(origin: Origin, method: str, called: Callable[..., Any], inputs: tuple[str, ...]) -> int:
    """How many of ``inputs`` a method takes: all, or all but the last. Raises PolicyError."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(parameter.kind in kinds for parameter in inspect.signature(called).parameters.values())
    if count not in (len(inputs) - 1, len(inputs)):
        raise PolicyError(
            f"{origin} ({origin.file}): {method} takes ({', '.join(inputs[:-1])}) or ({', '.join(inputs)}), "
            f"and options by keyword only (after a *); found {count} positional parameters."
        )
    return count


def check_options(
    origin: Origin, made_by: Callable[..., Any], given: Mapping[str, Any], kinds: tuple[object, ...]
) -> None:
    """Raises PolicyError for an option that is not known, or that is needed and not there."""
    parameters = inspect.signature(made_by).parameters.values()
    accepted = {parameter.name: parameter for parameter in parameters if parameter.kind in kinds}
    takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
    for name in given:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PolicyError(f"{origin} has no option {name!r}; {takes}.{hint}")
    for name, parameter in accepted.items():
        if parameter.default is Parameter.empty and name not in given:
            raise PolicyError(f"{origin} needs the option {name!r}; {takes}.")


@contextmanager
def blamed(origin: Origin, method: str) -> Iterator[None]:
    """Turns what a policy's own code raises into a PolicyError that says where."""
    try:
        yield
    except PolicyError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, FedrayError) else f"{type(error).__name__}: {error}"
        where = place_of(error, origin.file)
        raise PolicyError(f"{origin} failed in {method} at {where}: {said}") from error


def file_of(policy: Any) -> str:
    """Where it was written; a notebook's own code has no file, and what it has instead says so."""
    try:
        return inspect.getsourcefile(policy) or policy.__module__
    except TypeError:
        return str(policy.__module__)
