"""A configuration from a YAML file, a mapping or a value, with ``a.b=c`` overrides; and back to YAML."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedray.config.rules import broken_rules, effective
from fedray.config.sections import Config
from fedray.config.sentences import sentences
from fedray.errors import ConfigError

Tree = dict[str, Any]


class _Reader(yaml.SafeLoader):
    """YAML whose numbers may be written 1e-3, and whose keys may not be written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises a YAML error for a repeated key, of which YAML would keep the last."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for a text; people write it all the time.
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """A checked configuration.

    Args:
        source: a YAML file, the same as a mapping, or a `Config`.
        overrides: ``"training.learning_rate=1e-3"``: a dotted key and a value in YAML, later ones last.

    Raises:
        ConfigError: one sentence, on a line of its own, for everything that is wrong.
    """
    where, tree = _read(source)
    for override in overrides:
        _apply(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_lines(where, list(sentences(error, tree, Config)))) from None
    broken = list(broken_rules(config))
    if broken:
        raise ConfigError(_lines(where, broken))
    return config


def config_to_yaml(config: Config) -> str:
    """The resolved configuration: every key that has an effect, defaults too; `load_config` reads it back."""
    return yaml.safe_dump(effective(config), sort_keys=False, default_flow_style=None, width=100)


def options_of(given: Sequence[str]) -> Tree:
    """``["patience=2"]`` to ``{"patience": 2}``, values in YAML. Raises ConfigError."""
    tree: Tree = {}
    for option in given:
        _apply(tree, option)
    return tree


def lists_of(given: Sequence[str]) -> dict[str, list[Any]]:
    """``["training.learning_rate=[1e-3, 1e-2]"]`` to a dotted key and its values. Raises ConfigError."""
    found = {}
    for option in given:
        key, equals, text = option.partition("=")
        values = _yaml(text, f"{option!r}: ") if equals else None
        if not isinstance(values, list) or not values:
            raise ConfigError(f"Values to try are written KEY=[a, b], with one at least; found {option!r}.")
        found[key.strip()] = values
    return found


def _read(source: str | Path | Mapping[str, Any] | Config) -> tuple[str, Tree]:
    match source:
        case Config():
            return "", source.model_dump(mode="json", exclude_unset=True)
        case Mapping():
            # A copy all the way down: overrides must not reach the caller's own.
            return "", yaml.safe_load(yaml.safe_dump(_plain(source)))
        case _:
            return f"{source}: ", _parse(_text(Path(source)), f"{source}: ")


def _text(path: Path) -> str:
    if not path.exists():
        raise ConfigError(f"There is no configuration file {path}; give the path of a YAML file.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file; give the path of a YAML file.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a YAML file.") from error


def _parse(text: str, where: str) -> Tree:
    tree = _yaml(text, where)
    if tree is None:
        raise ConfigError(f"{where}the file is empty; the shortest configuration is 'seed: 0'.")
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}a configuration is a group of 'key: value' lines, found {tree!r:.60}.")
    return tree


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Reader)
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}not YAML{line}: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}not YAML: {' '.join(str(error).split())}.") from error


def _apply(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all([*sections, last]):
        raise ConfigError(f"An override is key=value, such as rounds.num_rounds=5; found {override!r}.")
    group: Tree = tree
    for name in sections:
        inner = group.get(name)
        # "policy: hetlora" is short for a group with a name.
        group[name] = inner if isinstance(inner, dict) else {"name": inner} if isinstance(inner, str) else {}
        group = group[name]
    group[last] = _yaml(text, f"{override!r}: ")


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case Path():
            return str(value)
        case _:
            return value


def _lines(where: str, found: Sequence[str]) -> str:
    return "\n".join(where + sentence for sentence in found)
