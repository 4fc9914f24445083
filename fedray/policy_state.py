"""A policy's state as one JSON text and named arrays, so that a checkpoint gives it back exactly."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.errors import PolicyError
from fedray.policy import State

Arrays = Mapping[str, NDArray[np.generic]]


def freeze_state(state: State) -> tuple[str, dict[str, NDArray[np.generic]]]:
    """The state as JSON and arrays; `thaw_state` reads them back.

    Floats and arrays of any plain dtype come back bit for bit; tuples stay tuples, and keys keep their
    type (a client id stays an integer).

    Raises:
        PolicyError: if the state holds something other than mappings, lists, tuples, arrays, numbers,
            strings, booleans and None; the message says where.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    return json.dumps(_frozen(state, "state", arrays)), arrays


def thaw_state(text: str, arrays: Arrays) -> State:
    """The state that `freeze_state` wrote."""
    state: State = _thawed(json.loads(text), arrays)
    return state


def _frozen(value: Any, place: str, arrays: dict[str, NDArray[np.generic]]) -> Any:
    """Numbers and strings stand for themselves; everything else is a pair of its kind and its content."""
    # numpy's own float is a Python float too, and would come back as one: it goes the way of arrays.
    if isinstance(value, np.ndarray | np.generic):
        return [
            "array" if isinstance(value, np.ndarray) else "scalar",
            _kept(np.asarray(value), place, arrays),
        ]
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            pairs = [[_key(k, place), _frozen(v, f"{place}[{k!r}]", arrays)] for k, v in value.items()]
            return ["mapping", pairs]
        case list() | tuple():
            items = [_frozen(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
            return [type(value).__name__, items]
        case _:
            raise PolicyError(
                f"A policy's state is checkpointed: mappings, lists, arrays, numbers and strings; {place} "
                f"is a {type(value).__name__}."
            )


def _key(key: Any, place: str) -> str | int | float | bool:
    if isinstance(key, str | int | float | bool) and not isinstance(key, np.generic):
        return key
    raise PolicyError(f"Keys of a policy's state are strings or numbers; {place} has the key {key!r}.")


def _kept(array: NDArray[np.generic], place: str, arrays: dict[str, NDArray[np.generic]]) -> str:
    if array.dtype.hasobject:
        raise PolicyError(
            f"A policy's state is checkpointed, so its arrays hold numbers or text; {place} does not."
        )
    arrays[place] = array.copy()
    return place


def _thawed(value: Any, arrays: Arrays) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    match kind:
        case "array":
            return arrays[content].copy()
        case "scalar":
            return arrays[content][()]
        case "mapping":
            return {key: _thawed(item, arrays) for key, item in content}
        case "tuple":
            return tuple(_thawed(item, arrays) for item in content)
        case _:
            return [_thawed(item, arrays) for item in content]
