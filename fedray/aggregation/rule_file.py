"""A user's own aggregation rule, from a Python file."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

from fedray.aggregation.rule import Aggregation, Transform
from fedray.errors import ConfigError
from fedray.python_file import run_file


def load_rule(path: Path, options: Mapping[str, object], transforms: tuple[Transform, ...]) -> Aggregation:
    """The rule of a file, which holds one class that inherits from `rule.Aggregation`.

    Args:
        path: of the file.
        options: arguments of the class.
        transforms: given to the class as ``transforms``, if there are any.

    Raises:
        ConfigError: if there is no such file, it does not run, it holds no rule or several, or an option
            is not one of its own.
    """
    if not path.is_file():
        raise ConfigError(f"No aggregation rule at {str(path)!r}: there is no such file in {Path.cwd()}.")
    try:
        module = run_file(path, "rule")
    except Exception as error:
        raise ConfigError(f"The rule file {path} does not run: {type(error).__name__}: {error}.") from error
    kind = _rule_class(module, path)
    known = inspect.signature(kind).parameters
    if transforms and "transforms" not in known:
        raise ConfigError(
            f"{kind.__name__} in {path} takes no transforms, so updates cannot be clipped before it sums "
            "them; give it the argument transforms, or drop aggregation.clip_norm."
        )
    unknown = [name for name in options if name not in known or name == "transforms"]
    if unknown:
        has = ", ".join(name for name in known if name not in ("name", "transforms")) or "none"
        raise ConfigError(f"{kind.__name__} in {path} has no option {unknown[0]!r}; it has {has}.")
    try:
        made = kind(**options, **({"transforms": transforms} if transforms else {}))
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} in {path} cannot be made with {options}: {error}.") from error
    return cast(Aggregation, made)


def rule_classes(module: ModuleType) -> list[type]:
    """The classes of a module that are rules."""
    own = (
        kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__
    )
    return [kind for kind in own if Aggregation in kind.__mro__]


def _rule_class(module: ModuleType, path: Path) -> type:
    found = rule_classes(module)
    if len(found) == 1:
        return found[0]
    names = ", ".join(kind.__name__ for kind in found) or "none"
    raise ConfigError(
        f"A rule file holds one class that inherits from fedray.aggregation.rule.Aggregation; {path} holds "
        f"{names}."
    )
