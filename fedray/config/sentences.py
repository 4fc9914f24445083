"""pydantic's complaints as sentences: which key, what it must be, what was found."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "mapping_type": "a group of keys",
    "dict_type": "a group of keys",
    "finite_number": "a finite number",
}
_BOUND = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def sentences(error: ValidationError, tree: Mapping[str, Any], model: type[BaseModel]) -> Iterator[str]:
    """One sentence for every key that is wrong, in the order of the keys.

    Args:
        error: what ``model`` said about ``tree``.
        tree: the configuration as it was given.
        model: whose keys are known.
    """
    by_key: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        by_key.setdefault(_place(detail, tree), []).append(detail)
    for place, details in by_key.items():
        yield _sentence(place, details, model)


def _place(detail: ErrorDetails, tree: Any) -> tuple[str | int, ...]:
    """Keys and positions that lead to the value; pydantic adds the names of a union's branches."""
    steps: list[str | int] = []
    for step in detail["loc"]:
        if step is detail["loc"][-1] and detail["type"] == "missing":
            steps.append(step)
        elif _leads_on(tree, step):
            steps.append(step)
            tree = tree[step]
    return tuple(steps)


def _leads_on(tree: Any, step: str | int) -> bool:
    if isinstance(tree, Mapping):
        return step in tree
    return isinstance(tree, Sequence) and not isinstance(tree, str) and isinstance(step, int)


def _sentence(place: tuple[str | int, ...], details: list[ErrorDetails], model: type[BaseModel]) -> str:
    first, key = details[0], _dotted(place)
    match first["type"]:
        case "extra_forbidden":
            return _unknown(place, model, first["loc"])
        case "missing":
            return f"{key} is missing."
        case "value_error":
            return f"{key} {first['ctx']['error']}."
        case "union_tag_not_found":
            return f"{key}.name is missing."
        case "union_tag_invalid":
            return f"{key}.name must be one of {_names(first)}, found {_shown(first['ctx']['tag'])}."
        case _:
            wanted = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
            return f"{key} must be {wanted}, found {_shown(first['input'])}."


def _expected(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _BOUND:
        words, bound = _BOUND[kind]
        return f"{words} {detail['ctx'][bound]:g}"
    if kind == "literal_error":
        expected = str(detail["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
        return f"one of {expected}" if "," in expected else expected
    return _EXPECTED.get(kind, detail["msg"])


def _unknown(place: tuple[str | int, ...], model: type[BaseModel], tags: Sequence[str | int]) -> str:
    *sections, key = place
    known = _known_keys([str(step) for step in sections], model, tags)
    where = f"{_dotted(tuple(sections))} has no key {key!r}" if sections else f"There is no key {key!r}"
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        return f"{where}; did you mean {_dotted((*sections, near[0]))}?"
    return f"{where}; it has {', '.join(known)}." if sections else f"{where}; there are {', '.join(known)}."


def _known_keys(sections: list[str], model: type[BaseModel], tags: Sequence[str | int]) -> list[str]:
    """The keys of the section that these steps lead to; of a union, those of the branch that has a tag."""
    models = [model]
    for step in sections:
        branches = [m for parent in models for m in _models_in(parent.model_fields[step].annotation)]
        named = [m for m in branches if "name" in m.model_fields and m.model_fields["name"].default in tags]
        models = named or branches
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [m for part in get_args(annotation) for m in _models_in(part)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []


def _names(detail: ErrorDetails) -> str:
    return str(detail["ctx"].get("expected_tags", "")).replace("'", "")


def _dotted(place: tuple[str | int, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".") or "the configuration"


def _shown(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value!r}"
        case int() | float():
            return f"{value}"
        case Mapping():
            return f"a group of keys ({', '.join(map(str, value)) or 'empty'})"
        case list() | tuple():
            return f"a list ({', '.join(map(str, value)) or 'empty'})"
        case _:
            return f"a {type(value).__name__}"
