"""Weight sites: a module of the frozen model that computes with weights, or scales, of each client's own.

Full fine-tuning and bias tuning train what the model has; in a pack every client has its own copy of that,
stacked, while what is not trained is shared. The module tree and its names stay as they were.

Letters of shapes: C clients of the pack, N rows (client by client), T tokens, D hidden width, I and O a
linear's widths, V rows of an embedding.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy

# A vector of each client's own that rescales a linear, [C, O, 1] what comes out or [C, 1, I] what goes in.
IA3 = "ia3_l"


class WeightSite:
    """Takes the place of a module's ``forward``; with nothing installed it is the frozen module."""

    def __init__(self, module: nn.Module, names: Mapping[str, str]) -> None:
        """Args: names: the model's name of each of the module's own parameters (a tied one has one name)."""
        self.module, self.names = module, names
        self.frozen = module.forward
        self.own: dict[str, Tensor] = {}  # [C, ...] each, by the parameter's name in the module
        self.rows_each = 1
        module.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        """What the module does, for rows of C clients; x is [N, T, I], or ids [N, T] or [1, T]."""
        scale = self.own.get(IA3)
        if scale is None:
            return self._computed(x)
        if scale.shape[1] == 1:
            return self._computed(_by_client(x, scale[:, 0]))
        return _by_client(self._computed(x), scale[:, :, 0])

    def _computed(self, x: Tensor) -> Tensor:
        if not self.own.keys() - {IA3}:
            return cast(Tensor, self.frozen(x))
        match self.module:
            case nn.Embedding():
                return self._looked_up(x)
            case nn.Linear() | Conv1D():
                return self._multiplied(x)
            case nn.LayerNorm(normalized_shape=shape, eps=eps):
                shared = None if "weight" in self.own else self.module.weight
                return self._scaled(functional.layer_norm(x, shape, shared, None, eps))
            case _:
                return self._scaled(_root_mean_square_normed(self.module, x))

    def _looked_up(self, ids: Tensor) -> Tensor:
        table = self.own["weight"]  # [C, V, D]
        clients, size = table.shape[:2]
        rows = ids.expand(clients * self.rows_each, -1) if len(ids) == 1 else ids
        first = size * torch.arange(clients, device=ids.device).repeat_interleave(self.rows_each)
        return functional.embedding(rows + first[:, None], table.flatten(0, 1))

    def _multiplied(self, x: Tensor) -> Tensor:
        weight, bias = self.own.get("weight"), self.own.get("bias")
        transposed = isinstance(self.module, nn.Linear)
        if weight is None:
            shared = cast(Tensor, self.module.weight)
            return self._shifted(x @ (shared.T if transposed else shared), bias)
        stacked = weight.to(x.dtype).transpose(1, 2) if transposed else weight.to(x.dtype)  # [C, I, O]
        answer = torch.bmm(x.reshape(len(stacked), -1, x.shape[-1]), stacked)
        return self._shifted(answer.view(*x.shape[:-1], -1), bias)

    def _scaled(self, normed: Tensor) -> Tensor:
        weight = self.own.get("weight")
        if weight is not None:
            normed = _by_client(normed, weight)
        return self._shifted(normed, self.own.get("bias"))

    def _shifted(self, answer: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return answer
        by_client = answer.reshape(len(bias), -1, answer.shape[-1])
        return (by_client + bias.to(answer.dtype)[:, None]).view(answer.shape)


def _by_client(x: Tensor, scale: Tensor) -> Tensor:
    """Rows of C clients, [N, T, I], each times its own scale, [C, I]."""
    own = x.reshape(len(scale), -1, x.shape[-1])
    return (own * scale.to(x.dtype)[:, None]).view(x.shape)


def _root_mean_square_normed(module: nn.Module, x: Tensor) -> Tensor:
    precise = x.float()
    scale = torch.rsqrt(precise.square().mean(-1, keepdim=True) + cast(float, module.variance_epsilon))
    return (precise * scale).to(x.dtype)


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.Linear | Conv1D | nn.LayerNorm):
        return True
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def attach_weight_sites(anatomy: Anatomy, names: Collection[str]) -> tuple[WeightSite, ...]:
    """Sites on the modules of these parameters, which are the model's names.

    Calling it again finds the sites that are there. Raises ModelError for a module whose arithmetic is not
    known, such as an image model's patches.
    """
    wanted = frozenset(names)
    name_of = {id(parameter): name for name, parameter in anatomy.model.named_parameters()}
    sites = []
    for path, module in anatomy.model.named_modules():
        own = {
            leaf: name_of[id(parameter)]
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }
        if f"{path}.{IA3}" in wanted:
            own[IA3] = f"{path}.{IA3}"
        if wanted.isdisjoint(own.values()):
            continue
        if not _is_known(module):
            raise ModelError(
                f"{path} ({type(module).__name__}) of this {anatomy.model.config.model_type} model cannot be "
                "trained as it is; leave the stem frozen (menu.depths below all), or train an adapter."
            )
        present: Any = module.forward
        site = present if isinstance(present, WeightSite) else WeightSite(module, own)
        site.names = {**site.names, **own}
        sites.append(site)
    return tuple(sites)


@contextmanager
def weights_installed(
    sites: Sequence[WeightSite], weights: Mapping[str, Tensor], rows_each: int
) -> Iterator[None]:
    """Stacked weights [C, ...], by the model's names, at their modules for the length of a ``with``."""
    before = [(site.own, site.rows_each) for site in sites]
    for site in sites:
        site.own = {leaf: weights[name] for leaf, name in site.names.items() if name in weights}
        site.rows_each = rows_each
    try:
        yield
    finally:
        for site, (own, rows) in zip(sites, before, strict=True):
            site.own, site.rows_each = own, rows
