"""What an operation makes on the meta device is worked out once for the same shapes, and remembered.

torch works shapes out in Python, half a millisecond an operation, by taking most operations apart; a step
has thousands, few of them unlike. A result has a shape, strides and a dtype, no values, so another will do.
"""

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

Look = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides in elements, dtype
# What a call makes: of each result its look, or None for a result that is None.
Made = tuple[Look | None, ...]
Kind = Literal["makes", "writes first"] | None


class MetaMemory(TorchDispatchMode):
    """Answers operations that were done on tensors of the same looks before. Enter it before any counter."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._kinds: dict[Any, Kind] = {}
        self._made: dict[Hashable, tuple[type, Made] | None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func not in self._kinds:
            self._kinds[func] = _kind_of(func)
        kind = self._kinds[func]
        key = None if kind is None else _key_of((func, args, tuple(named.items())))
        if key is None:
            return func(*args, **named)
        if key not in self._made:
            out = func(*args, **named)
            self._made[key] = _made(out, args) if kind == "makes" else (Tensor, ())
            return out
        known = self._made[key]
        if known is None:
            return func(*args, **named)
        return args[0] if kind == "writes first" else _made_again(*known)


def _kind_of(func: Any) -> Kind:
    """Whether all it does is make new tensors, or write element by element over its first argument."""
    schema = func._schema
    if not schema.is_mutable and all(one.alias_info is None for one in schema.returns):
        return "makes"
    written = [i for i, one in enumerate(schema.arguments) if one.alias_info and one.alias_info.is_write]
    return "writes first" if written == [0] and torch.Tag.pointwise in func.tags else None


def _key_of(value: Any) -> Hashable:
    """What the looks of results follow from; None where that is more than meta tensors and constants."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, Parameter) and value.device.type == "meta"
        return (value.shape, value.stride(), value.dtype) if plain else None
    if isinstance(value, list | tuple):
        keys = tuple(map(_key_of, value))
        return None if None in keys else keys
    if value is None:
        return ()
    # 1, 1.0 and True are equal, and give other dtypes.
    return (type(value), value) if isinstance(value, Hashable) else None


def _made(out: Any, args: tuple[Any, ...]) -> tuple[type, Made] | None:
    """The looks of results that stand alone; None where another like them would not do."""
    results = out if isinstance(out, tuple | list) else (out,)
    tensors = [one for one in results if isinstance(one, Tensor)]
    if not all(one is None or isinstance(one, Tensor) for one in results):
        return None
    alone = all(
        one.device.type == "meta" and one.untyped_storage().nbytes() == _least_bytes(one) for one in tensors
    )
    given = {id(one.untyped_storage()) for one in args if isinstance(one, Tensor)}
    storages = {id(one.untyped_storage()) for one in tensors}
    if not alone or len(storages) < len(tensors) or storages & given:
        return None
    looks = tuple(None if one is None else (one.shape, one.stride(), one.dtype) for one in results)
    return type(out) if results is out else Tensor, looks


def _least_bytes(tensor: Tensor) -> int:
    """What a storage of these strides takes at least."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _made_again(kind: type, looks: Made) -> Any:
    again = [
        None if look is None else torch.empty_strided(look[0], look[1], dtype=look[2], device="meta")
        for look in looks
    ]
    return again[0] if kind is Tensor else kind(again)
