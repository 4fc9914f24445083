"""Ordered dropout: a step at a part of the width is the narrower model's step, whoever shares the forward."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fedray.adapter import part_of
from fedray.assignment import Assignment, weights_on_top
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.model.slices import places_of
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.ordered import OrderedSteps
from fedray.training.own_weights import pretrained, trained_names
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from fedray.width import OrderedDropout, Width
from lone import DEEP, Case, real, tracer
from shop import BLOCKS, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
AXES = {"bert": ("ffn",), "gpt2": ("ffn",), "llama": ("heads", "ffn")}


def full(family, share=1.0, drawn=(), **changes):
    """All weights of a part of the width, of which in each step one of some shares or all is trained."""
    axes = AXES[family]
    entry = Assignment(
        blocks=tuple(range(BLOCKS)),
        adapter=weights_on_top(BLOCKS, BLOCKS, "all", stem=True),
        batch_size=4,
        width=None if share == 1 else Width(share=share, axes=axes),
        ordered=OrderedDropout(shares=drawn, axes=axes) if drawn else None,
    )
    return replace(entry, **changes)


def with_weights(workshop, family, client, entry):
    """A job that starts from the pretrained weights at its own width."""
    anatomy = workshop.backbones["fp32"].anatomy
    own = job(workshop, family, client, replace(entry, width=None, ordered=None))
    places = places_of(anatomy, entry.width)
    weights = pretrained(anatomy.model, trained_names(anatomy, entry))
    parts = {name: part_of(tensor, places.get(name)) for name, tensor in weights.items()}
    return replace(own, assignment=entry, sent=replace(own.sent, weights=parts))


@pytest.mark.parametrize("family", AXES)
@pytest.mark.parametrize("held", [1.0, 0.75])
def test_a_step_that_draws_a_width_is_the_step_of_the_model_of_that_width(family, held):
    workshop = build(family, [4], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    entry = full(family, held, (0.5,), max_steps=1)
    # Of two parts the smaller is drawn for some seed, and the larger for another.
    narrow = with_weights(workshop, family, 0, full(family, 0.5, max_steps=1))
    wide = with_weights(workshop, family, 0, full(family, held, max_steps=1))
    (small,), (large,) = train_pack(workshop, [narrow]), train_pack(workshop, [wide])
    seen = set()
    for number in range(1, 5):
        own = replace(with_weights(workshop, family, 0, entry), round=number)
        drawn = OrderedSteps([own], anatomy, "cpu").drawn(0)
        seen.add(drawn)
        # Batches are of the round as well: one step over all four rows has them in another order only.
        (update,) = train_pack(workshop, [own])
        theirs = (small, large)[drawn].delta
        inside = (places_of(anatomy, Width(share=0.5, axes=AXES[family])), None)[drawn]
        mine = places_of(anatomy, entry.width)
        for name, moved in update.delta.weights.items():
            whole = torch.zeros_like(anatomy.model.get_parameter(name))
            _put(whole, mine.get(name), moved)
            expected = torch.zeros_like(whole)
            _put(expected, inside.get(name) if inside is not None else mine.get(name), theirs.weights[name])
            torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-6)
    assert seen == {0, 1}


def _put(whole, place, part):
    if place is None:
        whole += part
        return
    axes = [torch.arange(size) if own is None else own for size, own in zip(whole.shape, place, strict=True)]
    whole[tuple(torch.meshgrid(*axes, indexing="ij"))] += part


def test_every_part_is_drawn_as_often_and_every_client_and_step_draws_for_itself():
    workshop = build("bert", [4, 4], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    jobs = [with_weights(workshop, "bert", i, full("bert", 1.0, (0.25, 0.5))) for i in range(2)]
    steps = OrderedSteps(jobs, anatomy, "cpu")
    found = []
    for _ in range(600):
        found.append((steps.drawn(0), steps.drawn(1)))
        steps.step([0, 1])
    assert Counter(one for one, _ in found).keys() == {0, 1, 2}
    assert all(150 < times < 250 for times in Counter(one for one, _ in found).values())
    # Of two that draw one of three apart from each other, a third draw alike.
    assert 150 < sum(one == other for one, other in found) < 250


def test_clients_that_draw_unlike_parts_train_together_as_alone():
    workshop = build("bert", [9, 5, 12], SGD)
    jobs = [with_weights(workshop, "bert", i, full("bert", 1.0, (0.25, 0.5))) for i in range(3)]
    assert len(form_packs(jobs, 8)) == 1
    for own, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_what_masks_take_is_in_the_footprint(share):
    entry = full("bert", share, (0.25, 0.5), batch_size=3)
    entry = replace(entry, adapter=weights_on_top(DEEP, DEEP, "all", stem=True))
    case = Case(
        family="bert",
        assignment=replace(entry, width=None, ordered=entry.ordered),
        shape=WorkShape(rows=3, tokens=16, attention="memory_efficient"),
        optimizer=replace(SGD, optim="adamw"),
    )
    workshop, own = real(case)
    anatomy = workshop.backbones["fp32"].anatomy
    places = places_of(anatomy, entry.width)
    weights = {name: part_of(tensor, places.get(name)) for name, tensor in own.sent.weights.items()}
    own = replace(own, assignment=entry, sent=replace(own.sent, weights=weights))
    trace = tracer(case, workshop)
    footprint, seen = trace(entry, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.01)
    assert footprint.peak_bytes > trace(replace(entry, ordered=None), case.shape).peak_bytes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OrderedDropout(shares=()), r"one of some ascending shares, found \(\)"),
        (lambda: OrderedDropout(shares=(0.5, 0.25)), "ascending shares"),
        (lambda: OrderedDropout(shares=(0.5,), axes=("head_dim",)), "with head_dim norms and scores are of"),
        (lambda: full("bert", 0.5, (0.5,)), "draws shares below the 0.5 that the client holds, found 0.5"),
        (
            lambda: full("bert", 1.0, (0.5,), width=Width(share=0.75, window="rolling", turn=2)),
            "trains leading parts of a leading part of the same axes",
        ),
        (
            lambda: full("bert", 1.0, (0.5,), adapter=weights_on_top(BLOCKS, 1, "bias")),
            "goes with full fine-tuning and a backward pass",
        ),
        (
            lambda: full("bert", 1.0, (0.5,), perturbations=2),
            "goes with full fine-tuning and a backward pass",
        ),
    ],
)
def test_parts_that_cannot_be_drawn_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_assignment_with_ordered_dropout_reads_back_and_says_so():
    entry = full("bert", 0.75, (0.25, 0.5))
    assert Assignment.from_json(entry.to_json()) == entry
    assert "width 0.75 of ffn, ordered dropout to 0.25, 0.5 of ffn" in str(entry)
