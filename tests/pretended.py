"""A pretended accelerator: its tensors are computed on the CPU, and never mixed with the CPU's own.

Code that makes a tensor on the CPU for others on an accelerator fails here as it fails there, with no
accelerator at hand. Wrapped tensors say they lie on torch's ``lazy`` device: torch knows it by name, starts
nothing for it, and goes backward through it on the caller's thread.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "lazy:0"
PLACE = torch.device(NAME)
COPIES = ("aten::_to_copy", "aten::copy_")
# Indices may lie on the CPU, wherever the indexed tensor lies.
INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Pretended(Tensor):
    """A tensor on the pretended device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        """Args: inner: its numbers, on the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PLACE,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("A tensor of an accelerator has no NumPy array; copy it to the CPU first.")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees what makes tensors, too, which has no argument to know the device by."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


def _computed(func, args, kwargs):
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    _refuse_a_mix(name, tensors, ours)
    answer = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    asked = kwargs.get("device")
    if asked is not None:
        stays = torch.device(asked).type != PLACE.type
    else:
        stays = not ours or (name == "aten::copy_" and not isinstance(args[0], Pretended))
    if stays:
        return answer
    known = {id(tensor.inner): tensor for tensor in ours}  # what is changed in place stays who it was

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Pretended(leaf)

    return tree_map(wrapped, answer)


def _refuse_a_mix(name: str, tensors: list[Tensor], ours: list[Pretended]) -> None:
    if not ours or name in COPIES:
        return
    if name in INDEXED and isinstance(tensors[0], Pretended):
        return
    # Like an accelerator, it takes plain numbers from anywhere.
    others = [t for t in tensors if not isinstance(t, Pretended) and t.dim() and t.device.type == "cpu"]
    if others:
        shapes = ", ".join(str(list(t.shape)) for t in others)
        raise RuntimeError(f"{name} mixes tensors of an accelerator with the CPU's own, of shape {shapes}")


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, Pretended):
        return leaf.inner
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == PLACE.type else leaf


@contextlib.contextmanager
def accelerator() -> Iterator[str]:
    """The device's name; in here torch has it."""
    make, generator = torch.tensor, torch.Generator

    def tensor(data: Any, *, device: Any = None, **others: Any) -> Tensor:
        return make(data, **others) if device is None else make(data, **others).to(device)

    # The first two reach their device past every dispatcher; recomputation asks for the third.
    with (
        patch("torch.tensor", tensor),
        patch("torch.Generator", lambda device="cpu": generator("cpu")),
        patch("torch.lazy", SimpleNamespace(), create=True),
        _Everywhere(),
    ):
        yield NAME
