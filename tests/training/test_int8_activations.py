"""Activations in 8 bits: what is rounded, by how much it moves a gradient, what it saves, who packs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, lora_on_top, weights_on_top
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu
from fedray.model.rounded import Rounded, Rounding, kept_in_8_bits, rounded, unpack
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import form_packs, train_pack
from lone import DEEP, Case, real, tracer
from shop import BLOCKS, TARGETS, assign, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)


# What is rounded.


def test_a_row_is_whole_numbers_of_the_127th_part_of_its_largest_and_a_gradient_that_of_the_rounded_row():
    x = torch.tensor([[127.0, 63.4, -0.6], [0.0, 0.0, 0.0]])
    values, scales = rounded(x)
    assert values.tolist() == [[127, 63, -1], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(1.0)
    weight = torch.ones(2, 3, requires_grad=True)
    with kept_in_8_bits([weight]):
        answer = (x * weight).sum()
    assert answer.item() == pytest.approx(189.8)  # as it always is
    answer.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[127.0, 63, -1], [0, 0, 0]]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.integers(1, 5), row=st.integers(2, 40), seed=st.integers(0, 99), size=st.floats(1e-6, 1e6))
def test_no_number_moves_by_more_than_half_of_its_rows_scale(rows, row, seed, size):
    x = size * torch.randn(rows, row, generator=torch.Generator().manual_seed(seed))
    values, scales = rounded(x)
    assert ((values * scales - x).abs() <= 0.5001 * x.abs().amax(1, keepdim=True) / 127).all()


def test_views_of_one_tensor_are_rounded_once_and_weights_and_small_ones_not_at_all():
    base, numbers, few = torch.randn(4, 6), torch.arange(24), torch.randn(4, 5)
    rounding = Rounding([], at_least=21)
    views = base, base.T, base.view(2, 12), base[1:, 2:]
    kept = [rounding.pack(view) for view in views]
    for view, own in zip(views, kept, strict=True):
        assert isinstance(own, Rounded)
        assert own.values is kept[0].values
        torch.testing.assert_close(unpack(own), view, rtol=0, atol=0.02)
    assert rounding.pack(numbers) is numbers
    assert rounding.pack(few) is few
    base.mul_(2)  # a tensor that has changed is another one
    torch.testing.assert_close(unpack(rounding.pack(base)), base, rtol=0, atol=0.04)
    view = base.T
    assert Rounding([base]).pack(view) is view


# What it does to a client.


def of_depth(family, depth, count, **changes):
    lora = lora_on_top(BLOCKS, depth, 4, targets=TARGETS[family])
    entry = Assignment(blocks=tuple(range(BLOCKS)), adapter=lora, batch_size=4, max_steps=1)
    return replace(entry, int8_activations=count, **changes)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_a_gradient_is_off_by_the_rounding_and_by_no_more(family):
    workshop = build(family, [4], SGD)
    for attention in ("eager", "memory_efficient"):
        (exact,), (near,) = (
            train_pack(
                workshop,
                [replace(job(workshop, family, 0, of_depth(family, BLOCKS, n)), attention=attention)],
            )
            for n in (0, BLOCKS)
        )
        assert near.loss == exact.loss  # a forward pass is what it was
        one, other = (torch.cat([t.flatten() for t in u.delta.tensors().values()]) for u in (exact, near))
        # A row's entries are off by 1/254 of its largest at most; four blocks add theirs up.
        assert 1e-5 < float((one - other).norm() / one.norm()) < 0.03


def test_clients_train_together_as_alone_and_with_their_like():
    workshop = build("bert", [9, 4, 6, 5], SGD)
    jobs = [job(workshop, "bert", i, of_depth("bert", 3, n)) for i, n in enumerate((2, 2, 0, 3))]
    packs = form_packs(jobs, 8)
    assert sorted([own.client_id for own in pack] for pack in packs) == [[0, 1], [2], [3]]
    together = next(pack for pack in packs if len(pack) == 2)
    for own, update in zip(together, train_pack(workshop, together), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            # A number may fall to the other side of a half; then it moves by a step.
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("family", "attention"), [("llama", "memory_efficient"), ("bert", "eager")])
def test_what_is_saved_is_in_the_footprint_and_an_audit_finds_it(family, attention):
    lora = lora_on_top(DEEP, DEEP, 4, targets=TARGETS[family])
    entry = Assignment(blocks=tuple(range(DEEP)), adapter=lora, batch_size=4)
    shape, seen = WorkShape(rows=4, tokens=128, attention=attention), {}
    for count in (0, 2, DEEP):
        case = Case(
            family=family,
            assignment=replace(entry, int8_activations=count),
            shape=shape,
            optimizer=LocalOptimizer(),
        )
        workshop, own = real(case)
        footprint = tracer(case, workshop)(case.assignment, case.shape)
        if count == 2:
            assert footprint.peak_bytes == pytest.approx(audit(workshop, own).peak_bytes, rel=0.005)
        seen[count] = footprint
    none, half, every = (seen[count].peak_bytes for count in (0, 2, DEEP))
    assert every < half < none
    # It costs memory traffic and no arithmetic.
    assert seen[DEEP].moved_bytes > seen[0].moved_bytes
    assert seen[DEEP].backward_flops == seen[0].backward_flops


def test_weights_that_are_trained_are_kept_as_they_are():
    case = Case(
        family="bert",
        assignment=Assignment(
            blocks=tuple(range(DEEP)),
            adapter=weights_on_top(DEEP, 2, "all"),
            batch_size=4,
            int8_activations=2,
        ),
        shape=WorkShape(rows=4, tokens=64, attention="memory_efficient"),
        optimizer=SGD,
    )
    workshop, own = real(case)
    footprint = tracer(case, workshop)(case.assignment, case.shape)
    assert footprint.peak_bytes == pytest.approx(audit(workshop, own).peak_bytes, rel=0.005)
    (exact,), (near,) = (
        train_pack(workshop, [replace(own, assignment=replace(case.assignment, int8_activations=n))])
        for n in (0, 2)
    )
    one, other = (torch.cat([t.flatten() for t in u.delta.tensors().values()]) for u in (exact, near))
    assert 1e-5 < float((one - other).norm() / one.norm()) < 0.03


# The menu, and what is refused.


def test_a_menu_offers_as_many_blocks_as_have_a_backward_pass():
    grid = Grid(
        num_blocks=4, targets=("query",), ranks=(4,), depths=(1, "all"), head_only=True,
        int8_activations=(0, 2, "all"), recompute=(False, True), cuts=(1,),
    )  # fmt: skip
    found = {(e.num_trained_blocks, e.int8_activations, e.recompute) for e in build_menu(grid) if not e.split}
    assert found == {
        (0, 0, False), (1, 0, False), (1, 0, True), (1, 1, False),
        (4, 0, False), (4, 0, True), (4, 2, False), (4, 4, False),
    }  # fmt: skip
    assert {e.int8_activations for e in build_menu(grid) if e.split} == {0}
    with pytest.raises(ConfigError, match="lists 3, and no entry has so many blocks of its own with a backw"):
        build_menu(replace(grid, depths=(1,), int8_activations=(0, 3)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"int8_activations": 5}, "counts blocks with a backward pass, 0 to 4 of them here, found 5"),
        ({"int8_activations": -1}, "0 to 4 of them here, found -1"),
        ({"int8_activations": 2, "recompute": True}, "recompute keeps no activations; drop one of the two"),
        ({"int8_activations": 2, "perturbations": 2}, "a forward-only client keeps none"),
        (
            {"int8_activations": 1, "split": True, "blocks": (0, 1)},
            "a server runs the blocks above a cut; drop one of the two",
        ),
        ({"int8_activations": 1, "adapter": HeadOnly()}, "0 to 0 of them here, found 1"),
    ],
)
def test_what_rounds_nothing_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(assign("bert", BLOCKS, 2), **changes)


def test_an_assignment_reads_back_and_says_so():
    entry = replace(assign("bert", BLOCKS, 2), int8_activations=3)
    assert Assignment.from_json(entry.to_json()) == entry
    assert "8-bit activations of 3 blocks" in str(entry)
