"""A LoRA site against the dense product, and how sites come and go."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedray.model.layout import Layout, laid_out
from fedray.model.sites import (
    LoraSite,
    StackedFactors,
    attach_sites,
    changed,
    installed,
    moved_weights,
    swapped,
)
from fedray.training.optimizer import LocalOptimizer
from shop import TARGETS, build


def linear_of(kind):
    torch.manual_seed(1)
    linear = nn.Linear(6, 10) if kind == "linear" else Conv1D(10, 6)
    nn.init.normal_(linear.bias)
    weight = linear.weight if kind == "linear" else linear.weight.T
    return linear, weight.detach().clone()


def factors_of(clients, rank):
    draw = torch.Generator().manual_seed(2)
    return StackedFactors(
        a=torch.randn(clients, rank, 6, generator=draw),
        b=torch.randn(clients, 10, rank, generator=draw),
        scale=torch.arange(1.0, clients + 1).view(clients, 1, 1),
    )


def test_tokens_end_to_end_give_the_products_and_gradients_of_padded_rows():
    linear, _ = linear_of("linear")
    site, mask = LoraSite(linear), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    layout = Layout.of(mask, 2)
    found = []
    for own in (None, layout):
        factors = factors_of(2, 3)
        leaves = factors.a.requires_grad_(), factors.b.requires_grad_()
        x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(5), requires_grad=True)
        with installed({"site": site}, {"site": factors}), laid_out(own):
            y = linear(x) if own is None else own.spread(linear(own.tighten(x)))
        masked = y * mask[..., None]
        found.append((masked, *torch.autograd.grad((masked**2).sum(), (*leaves, x))))
    for padded, tight in zip(*found, strict=True):
        torch.testing.assert_close(tight, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_each_clients_rows_see_its_own_product(kind):
    linear, weight = linear_of(kind)
    site, factors = LoraSite(linear), factors_of(3, 2)
    x = torch.randn(3 * 2, 5, 6)
    frozen = linear(x)
    with installed({"site": site}, {"site": factors}):
        found = linear(x)
    for row in range(6):
        client = row // 2
        whole = weight + factors.scale[client] * factors.b[client] @ factors.a[client]
        torch.testing.assert_close(found[row], x[row] @ whole.T + linear.bias, rtol=1e-5, atol=1e-5)
    assert torch.equal(linear(x), frozen)


def test_a_site_is_left_as_it_was_also_when_something_raises():
    linear, _ = linear_of("linear")
    site = LoraSite(linear)
    outer, inner = factors_of(1, 2), factors_of(1, 3)
    with installed({"site": site}, {"site": outer}):
        with pytest.raises(ZeroDivisionError), installed({"site": site}, {"site": inner}):
            raise ZeroDivisionError
        assert site.factors is outer
    assert site.factors is None


def test_sites_are_found_again_and_stand_in_for_the_module_without_changing_names():
    workshop = build("bert", [4], LocalOptimizer())
    backbone = workshop.backbones["fp32"]
    assert sorted({path.rpartition(".")[2] for path in backbone.sites}) == sorted(TARGETS["bert"])
    again = attach_sites(backbone.anatomy, TARGETS["bert"])
    assert again.keys() == backbone.sites.keys()
    assert all(again[path] is site for path, site in backbone.sites.items())
    assert all(".lora" not in name for name, _ in backbone.anatomy.model.named_parameters())


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_shift_moves_the_product_and_never_the_weight_itself(kind):
    linear, weight = linear_of(kind)
    sites, before = {"site": LoraSite(linear)}, linear.weight
    delta = factors_of(1, 2)
    x = torch.randn(4, 6)
    frozen = linear(x)
    elsewhere = moved_weights(sites, {"site": (delta.b[0], delta.a[0])})
    with swapped(sites, elsewhere):
        moved = linear(x)
        assert linear.weight is not before
    assert linear.weight is before
    assert torch.equal(before, weight if kind == "linear" else weight.T)
    torch.testing.assert_close(moved - frozen, x @ (delta.b[0] @ delta.a[0]).T, rtol=1e-4, atol=1e-5)
    with pytest.raises(ZeroDivisionError), swapped(sites, elsewhere):
        raise ZeroDivisionError
    assert linear.weight is before


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_change_beside_a_weight_is_the_weight_moved_under_any_adapter(kind):
    linear, _ = linear_of(kind)
    sites, x, delta = {"site": LoraSite(linear)}, torch.randn(4, 3, 6), factors_of(1, 2)
    deltas = {"site": (delta.b[0], delta.a[0])}
    for own in ({}, {"site": factors_of(2, 3)}):
        with installed(sites, own):
            plain = linear(x)
            with changed(sites, deltas):
                beside = linear(x)
            with swapped(sites, moved_weights(sites, deltas)):
                torch.testing.assert_close(beside, linear(x), rtol=1e-5, atol=1e-6)
            assert not torch.allclose(beside, plain)
            assert torch.equal(linear(x), plain)
