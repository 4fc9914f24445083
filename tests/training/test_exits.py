"""Heads at several depths: what they cost, what they learn, and with whom they share a forward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedray.adapter import WEIGHTS, GlobalState
from fedray.assignment import Assignment, HeadOnly, lora_on_top, weights_on_top
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.exits import ramp
from fedray.menu import Grid, build_menu
from fedray.model.slices import narrowed
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import pretrained, trained_names, with_own_weights
from fedray.training.packed import losses_of_exits
from fedray.training.train import form_packs, train_pack
from fedray.width import Width
from lone import Case, real, tracer
from shop import BLOCKS, LABELS, TARGETS, TASKS, assign, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
TAUGHT = replace(SGD, exit_distillation=0.7, exit_ramp_rounds=1)


def of_depth(family, depth, exits, rank=2, **changes):
    lora = lora_on_top(depth, depth, rank, targets=TARGETS[family])
    entry = Assignment(blocks=tuple(range(depth)), adapter=lora, batch_size=4, exits=exits)
    return replace(entry, **changes)


# What the loss is.


def test_the_loss_of_three_exits_is_the_sum_of_theirs_and_of_what_they_teach_each_other():
    # One row, two labels, the first is right. Odds of the three heads: 1:1, 3:1 and 1:3.
    answers = [
        torch.tensor([[0.0, 0.0]]),
        torch.log(torch.tensor([[3.0, 1.0]])),
        torch.tensor([[0.0, np.log(3)]]),
    ]
    batch = {"label": torch.tensor([0])}
    said = [np.array([0.5, 0.5]), np.array([0.75, 0.25]), np.array([0.25, 0.75])]
    own = sum(-np.log(p[0]) for p in said)
    taught = sum(
        float((q * np.log(q / p)).sum()) for i, p in enumerate(said) for j, q in enumerate(said) if i != j
    )
    answers = [answer.double() for answer in answers]
    (plain,) = losses_of_exits(TASKS["bert"], answers, batch, 0.0).tolist()
    (both,) = losses_of_exits(TASKS["bert"], answers, batch, 0.4).tolist()
    assert plain == pytest.approx(own)
    assert both == pytest.approx(own + 0.4 / 2 * taught)


def test_a_head_is_taught_by_the_others_and_teaches_them_without_a_gradient():
    torch.manual_seed(0)
    answers = [torch.randn(6, LABELS, requires_grad=True) for _ in range(3)]
    batch = {"label": torch.randint(LABELS, (6,))}
    losses_of_exits(TASKS["bert"], answers, batch, 1.5).sum().backward()
    for own in answers:
        alone = own.detach().clone().requires_grad_()
        loss = functional.cross_entropy(alone, batch["label"], reduction="sum")
        for other in answers:
            if other is not own:
                # As DepthFL's code has it, but for its mean over rows.
                target = functional.softmax(other.detach(), dim=1)
                loss = loss + 1.5 / 2 * functional.kl_div(
                    functional.log_softmax(alone, dim=1), target, reduction="sum"
                )
        loss.backward()
        torch.testing.assert_close(own.grad, alone.grad)


def test_the_weight_of_teaching_rises_as_in_the_published_code():
    assert ramp(1, 300) == pytest.approx(np.exp(-5))
    assert ramp(151, 300) == pytest.approx(np.exp(-1.25))
    assert ramp(301, 300) == ramp(1000, 300) == 1.0


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize("axes", [None, ("ffn",), ("hidden", "head_dim", "ffn")], ids=str)
def test_a_step_is_the_gradient_of_all_heads_losses_on_the_plain_model(family, axes):
    workshop = build(family, [4], SGD)
    whole = workshop.backbones["fp32"].anatomy
    width = None if axes is None else Width(share=0.5, axes=axes)
    entry = Assignment(
        blocks=tuple(range(3)),
        adapter=weights_on_top(3, 2, "all"),
        batch_size=4,
        exits=(1, 3),
        max_steps=1,
        width=width,
    )
    own = job(workshop, family, 0, replace(entry, width=None))
    state = GlobalState(
        adapter=replace(own.sent, weights=pretrained(whole.model, trained_names(whole, entry)))
    )
    own = replace(own, assignment=entry, sent=with_own_weights(whole, entry, state, own.sent))
    anatomy, weights = narrowed(whole, width), own.sent.weights
    assert set(own.sent.head) == {"exit_1.weight", "exit_1.bias", "exit_3.weight", "exit_3.bias"}
    (update,) = train_pack(workshop, [own])
    batch = workshop.pool.batch(workshop.partitions[0], 24)
    heads = {name: tensor.clone().requires_grad_() for name, tensor in own.sent.head.items()}
    trained = {name: anatomy.model.get_parameter(name) for name in weights}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    flow = anatomy.stem(batch[anatomy.family.inputs], batch["attention_mask"])
    hidden, loss = flow.hidden, torch.zeros(())
    for block in range(3):
        hidden = anatomy.block(block, hidden, flow.context)
        if block + 1 in (1, 3):
            states = anatomy.head(hidden, flow.context)
            read = states[:, 0] if family == "vit" else _mean(states, batch["attention_mask"])
            prefix = f"exit_{block + 1}."
            logits = read @ heads[f"{prefix}weight"].T + heads[f"{prefix}bias"]
            loss = loss + functional.cross_entropy(logits, batch["label"])
    loss.backward()
    assert update.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, head in heads.items():
        torch.testing.assert_close(update.delta.head[name], -0.05 * head.grad, rtol=1e-4, atol=1e-7)
    for name, parameter in trained.items():
        torch.testing.assert_close(update.delta.weights[name], -0.05 * parameter.grad, rtol=1e-3, atol=1e-6)


def _mean(states, mask):
    real = mask.unsqueeze(-1).float()
    return (states * real).sum(1) / real.sum(1)


# Packs.


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_clients_with_exits_train_together_as_alone(family):
    workshop = build(family, [9, 4, 6], TAUGHT)
    jobs = [
        job(workshop, family, i, of_depth(family, BLOCKS, (1, 2), rank)) for i, rank in enumerate((2, 5, 1))
    ]
    for own, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-4, atol=1e-6)


def test_a_model_that_ends_at_an_exit_learns_as_one_of_so_many_blocks():
    # The same numbers as the whole of a model of two blocks, whose last head is called otherwise.
    workshop = build("bert", [7], SGD)
    entry = of_depth("bert", 2, (2,))
    plain = job(workshop, "bert", 0, replace(entry, exits=()))
    named = {f"exit_2.{name}": tensor for name, tensor in plain.sent.head.items()}
    at_exit = replace(plain, assignment=entry, sent=replace(plain.sent, head=named))
    (one,), (other,) = train_pack(workshop, [plain]), train_pack(workshop, [at_exit])
    assert one.loss == other.loss
    assert torch.equal(one.delta.head["weight"], other.delta.head["exit_2.weight"])
    for site, factors in one.delta.factors.items():
        assert torch.equal(factors.b, other.delta.factors[site].b)


def test_clients_with_other_exits_are_in_other_packs():
    workshop = build("bert", [4, 4, 4], SGD)
    entries = [of_depth("bert", BLOCKS, exits) for exits in ((1,), (1, 2), (1,))]
    jobs = [job(workshop, "bert", i, entry) for i, entry in enumerate(entries)]
    packs = form_packs(jobs, 8)
    assert [[own.client_id for own in pack] for pack in packs] == [[0, 2], [1]]


# Costs.


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize(
    ("depth", "exits"),
    [(4, (1, 3)), (3, (1, 2, 3)), (4, (4,)), (2, (1,))],
    ids=["4: 1, 3", "3: all", "4: 4", "2: 1"],
)
def test_what_exits_take_is_in_the_footprint(family, depth, exits):
    for recompute in (False, True):
        case = Case(
            family=family,
            assignment=of_depth(family, depth, exits, batch_size=3, recompute=recompute),
            shape=WorkShape(rows=3, tokens=16, attention="memory_efficient"),
            optimizer=replace(TAUGHT, optim="adamw"),
        )
        workshop, own = real(case)
        own = replace(own, round=2)
        footprint, seen = tracer(case, workshop)(case.assignment, case.shape), audit(workshop, own)
        assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.005)


def test_a_deep_model_with_exits_is_priced_from_its_first_middle_and_last_blocks():
    from fedray.training.short_steps import kinds_of, shortened

    lora = lora_on_top(12, 12, 4, targets=("query",))
    entry = Assignment(blocks=tuple(range(12)), adapter=lora, exits=(6, 12))
    kinds = kinds_of("whole", entry, 12)
    assert [at_exit for at_exit, *_ in kinds] == [depth in (6, 12) for depth in range(1, 13)]
    short = shortened("whole", entry, 12, (0, 1, 4, 5, 6, 7, 10, 11))
    assert (short.exits, len(short.blocks)) == ((4, 8), 8)


def test_a_model_of_fewer_blocks_holds_and_sends_fewer_bytes():
    case = Case(
        family="bert",
        assignment=of_depth("bert", 4, (2,)),
        shape=WorkShape(rows=4, tokens=16, attention="memory_efficient"),
        optimizer=SGD,
    )
    trace = tracer(case, real(case)[0])
    whole, half = (trace(of_depth("bert", depth, (2,)), case.shape) for depth in (4, 2))
    assert {f"block.{block}" for block in (2, 3)} == whole.held_bytes.keys() - half.held_bytes.keys()
    assert half.up_bytes < whole.up_bytes
    assert half.peak_bytes < whole.peak_bytes


# The menu.


def test_a_menu_has_every_depth_in_every_width():
    grid = Grid(num_blocks=4, targets=(), ranks=(), tunings=("full",), exits=(2,), widths=(1.0, 0.5))
    found = {(len(e.blocks), e.exits, e.width and e.width.share) for e in build_menu(grid)}
    assert found == {(2, (2,), None), (2, (2,), 0.5), (4, (2,), None), (4, (2,), 0.5)}


def test_a_menu_with_exits_has_every_depth_alone_with_the_exits_below_it():
    grid = Grid(num_blocks=6, targets=("query",), ranks=(4,), depths=("all", 3), exits=(2, 4), head_only=True)
    found = {(len(entry.blocks), entry.exits, entry.num_trained_blocks) for entry in build_menu(grid)}
    assert found == {
        (2, (2,), 0), (2, (2,), 2),
        (4, (2, 4), 0), (4, (2, 4), 3), (4, (2, 4), 4),
        (6, (2, 4), 0), (6, (2, 4), 3), (6, (2, 4), 6),
    }  # fmt: skip
    assert build_menu(replace(grid, exits=(4, 2))) == build_menu(grid)


def test_entries_with_a_cut_have_no_exits():
    grid = Grid(num_blocks=4, targets=("query",), exits=(2,), cuts=(1,))
    assert {entry.exits for entry in build_menu(grid) if entry.split} == {()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"exits": (2, 1)},
            "Exits are depths in ascending order, from 1 to the 4 executed blocks, found 2, 1",
        ),
        ({"exits": (5,)}, "from 1 to the 4 executed blocks, found 5"),
        ({"exits": (0, 2)}, "found 0, 2"),
        (
            {"exits": (1,), "blocks": (0, 1, 3, 4)},
            r"count leading blocks, and blocks \(0, 1, 3, 4\) skip some",
        ),
        ({"exits": (1,), "blocks": (0, 1), "split": True}, "under a cut the server has the blocks above"),
    ],
)
def test_exits_that_are_none_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(assign("bert", BLOCKS, 2), **changes)


def test_an_exit_behind_every_block_is_refused():
    with pytest.raises(ConfigError, match="behind all 4 stands the model's last one; found 4, give 1 to 3"):
        build_menu(Grid(num_blocks=4, targets=("query",), exits=(2, 4)))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"menu": {"exits": [2], "cuts": [1], "whole": False}},
            "menu.whole: false offers clients none of these",
        ),
    ],
)
def test_exits_that_nothing_goes_with_are_refused(tree, words):
    with pytest.raises(ConfigError, match=words):
        load_config(tree)


def test_an_assignment_with_exits_reads_back_and_says_so():
    entry = Assignment(blocks=(0, 1, 2), adapter=HeadOnly(), exits=(1, 3))
    assert Assignment.from_json(entry.to_json()) == entry
    assert str(entry) == "head only over 3 blocks, exits 1,3, batch 8"


def test_weights_names_of_the_stack_are_none_of_a_head():
    # An exit's tensors travel as the head's, so coverage means and codecs take them as they are.
    workshop = build("bert", [4], SGD)
    sent = job(workshop, "bert", 0, of_depth("bert", 2, (1, 2))).sent
    assert [name for name in sent.tensors() if name.startswith(WEIGHTS)] == []
    assert {name for name in sent.tensors() if "exit_" in name} == {
        f"head.exit_{depth}.{leaf}" for depth in (1, 2) for leaf in ("weight", "bias")
    }
