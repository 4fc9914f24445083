"""Clients without a backward pass: what they find, with whom they share a forward, what they need."""

from dataclasses import replace

import pytest
import torch

from fedray.assignment import Assignment, lora_on_top
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu
from fedray.model.wire import wire_bytes
from fedray.training.audit import audit
from fedray.training.forward_only import Directions
from fedray.training.link import as_received, on_its_way, refuse_seeds
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from lone import DEEP, Case, real, tracer
from shop import BLOCKS, TARGETS, assign, b_alone, build, job
from tiny_run import assert_same_adapter, merged, played, save_fleet

# Far enough apart that fp32 losses tell, near enough that a loss is a line between.
SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None, perturbation_scale=0.01)


def one_step(family, tried, **changes):
    return assign(family, BLOCKS, 3, max_steps=1, perturbations=tried, **changes)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_step_along_one_direction_is_its_slope_times_it(family):
    workshop = build(family, [4], SGD)
    own = job(workshop, family, 0, one_step(family, 1))
    plain = replace(own, assignment=one_step(family, 0))
    (estimated,), (exact,) = train_pack(workshop, [own]), train_pack(workshop, [plain])
    directions = Directions([own], [own.sent], SGD, "cpu")
    leaves = {name: tensor[None] for name, tensor in own.sent.tensors().items()}
    drawn = {name: tensor[0] for name, tensor in directions.drawn(leaves, [0], 0).items()}
    moved = exact.delta.tensors()  # -0.05 times the gradient that autograd finds
    slope = sum(float((moved[name] * drawn[name]).sum()) for name in drawn)
    for name, tensor in estimated.delta.tensors().items():
        torch.testing.assert_close(tensor, slope * drawn[name], rtol=0.1, atol=1e-3 * abs(slope))
    assert estimated.loss == pytest.approx(exact.loss, rel=1e-2)


def test_many_directions_point_where_the_gradient_does():
    workshop = build("bert", [4], SGD)
    entry = Assignment(
        blocks=tuple(range(BLOCKS)),
        adapter=lora_on_top(BLOCKS, 1, 1, targets=("query",)),
        batch_size=4,
        max_steps=1,
    )
    own = job(workshop, "bert", 0, entry)
    (exact,) = train_pack(workshop, [own])

    def likeness(tried):
        (found,) = train_pack(workshop, [replace(own, assignment=replace(entry, perturbations=tried))])
        ours, theirs = (
            torch.cat([t.flatten() for t in update.delta.tensors().values()]) for update in (found, exact)
        )
        return float(torch.cosine_similarity(ours, theirs, dim=0))

    # Of d numbers and n directions the cosine is sqrt(n / (n + d + 1)) or so; d is 117.
    assert likeness(2) < 0.5
    assert likeness(150) == pytest.approx((150 / 268) ** 0.5, abs=0.12)


def test_clients_of_unlike_ranks_and_depths_step_together_as_alone():
    workshop = build("bert", [9, 4, 6], SGD)
    shapes = [(4, 2), (1, 8), (4, 5)]
    jobs = [
        job(workshop, "bert", i, assign("bert", *shape, perturbations=2)) for i, shape in enumerate(shapes)
    ]
    assert len(form_packs(jobs, 8)) == 1
    for own, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-2, atol=1e-3)


def test_what_pads_a_client_gets_no_direction():
    workshop = build("bert", [4, 4], SGD)
    jobs = [
        job(workshop, "bert", i, assign("bert", BLOCKS, rank, perturbations=1))
        for i, rank in enumerate((1, 4))
    ]
    leaves = {name: torch.stack([tensor, tensor]) for name, tensor in jobs[1].sent.tensors().items()}
    drawn = Directions(jobs, [own.sent for own in jobs], SGD, "cpu").drawn(leaves, [0, 1], 0)
    for site in jobs[0].sent.factors:
        a = drawn[f"{site}.lora_A"]
        assert not a[0, 1:].any()
        assert a[0, 0].all()
        assert a[1].all()


def test_every_step_and_every_client_has_directions_of_its_own():
    workshop = build("bert", [4, 4], SGD)
    jobs = [job(workshop, "bert", i, assign("bert", BLOCKS, 2, perturbations=2)) for i in range(2)]
    directions = Directions(jobs, [own.sent for own in jobs], SGD, "cpu")
    leaves = {name: torch.stack([tensor, tensor]) for name, tensor in jobs[0].sent.tensors().items()}

    def first(number):
        return next(iter(directions.drawn(leaves, [0, 1], number).values())).clone()

    once, again, other = first(0), first(0), first(1)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once[0], once[1])
    directions.step([0])
    later = first(0)
    assert torch.equal(once[1], later[1])
    assert not torch.equal(once[0], later[0])


def test_an_a_that_nobody_trains_is_not_perturbed():
    workshop = build("bert", [4], SGD)
    own = job(workshop, "bert", 0, b_alone(one_step("bert", 2)))
    (update,) = train_pack(workshop, [own])
    assert all(not factors.a.any() for factors in update.delta.factors.values())
    assert any(factors.b.any() for factors in update.delta.factors.values())


# Costs.


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
@pytest.mark.parametrize("tried", [1, 3])
def test_what_it_needs_is_in_the_footprint_and_there_is_no_backward_pass(family, tried):
    lora = lora_on_top(DEEP, DEEP, 4, targets=TARGETS[family])
    case = Case(
        family=family,
        assignment=Assignment(blocks=tuple(range(DEEP)), adapter=lora, batch_size=3, perturbations=tried),
        shape=WorkShape(rows=3, tokens=32, attention="memory_efficient"),
        optimizer=replace(SGD, optim="adamw"),
    )
    workshop, own = real(case)
    trace = tracer(case, workshop)
    footprint, seen = trace(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.005)
    assert footprint.backward_flops == 0
    plain = trace(replace(case.assignment, perturbations=0), case.shape)
    # Two looks a direction, each of which costs a forward.
    assert footprint.forward_flops == pytest.approx(2 * tried * plain.forward_flops, rel=0.02)
    assert footprint.terms.activations < plain.terms.activations / 3
    assert footprint.peak_bytes < plain.peak_bytes


# A number for each shared seed.


def seeded(family, client, workshop, seeds=16, **changes):
    entry = assign(family, BLOCKS, 2, perturbations=2, up_codec=f"seeds{seeds}", **changes)
    return job(workshop, family, client, entry)


def test_the_server_works_out_of_a_number_a_seed_what_the_client_did():
    workshop = build("bert", [9, 5], SGD)
    jobs = [seeded("bert", client, workshop) for client in range(2)]
    for own, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        sent = on_its_way(own, update)
        assert sent.delta is None
        assert {name: tuple(t.shape) for name, t in sent.tensors().items()} == {"seeds": (16,)}
        came = as_received(own, sent)
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(came.delta.tensors()[name], moved, rtol=1e-4, atol=1e-5)


def test_clients_of_one_run_share_their_directions_and_those_of_another_do_not():
    workshop = build("bert", [4, 4], SGD)
    one, two = (seeded("bert", client, workshop, seeds=1) for client in range(2))
    leaves = {name: tensor[None] for name, tensor in one.sent.tensors().items()}
    name = next(iter(leaves))
    first, second, other = (
        Directions([own], [own.sent], SGD, "cpu").drawn(leaves, [0], 0)[name]
        for own in (one, two, replace(one, seed=8))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_clients_that_share_other_seeds_or_none_are_in_other_packs():
    workshop = build("bert", [4, 4, 4, 4], SGD)
    jobs = [seeded("bert", client, workshop, seeds=16 if client % 2 else 8) for client in range(3)]
    own = job(workshop, "bert", 3, assign("bert", BLOCKS, 2, perturbations=2))
    packs = form_packs([*jobs, own], 8)
    assert [[one.client_id for one in pack] for pack in packs] == [[0, 2], [1], [3]]


def test_what_crosses_is_as_long_as_the_seeds_are_many_whatever_is_trained():
    case = Case(
        family="bert",
        assignment=Assignment(
            blocks=tuple(range(DEEP)),
            adapter=lora_on_top(DEEP, DEEP, 4, targets=TARGETS["bert"]),
            batch_size=3,
            perturbations=2,
            up_codec="seeds64",
        ),
        shape=WorkShape(rows=3, tokens=32, attention="memory_efficient"),
        optimizer=SGD,
    )
    workshop, own = real(case)
    footprint = tracer(case, workshop)(case.assignment, case.shape)
    (update,) = train_pack(workshop, [own])
    sent = on_its_way(own, update)
    assert footprint.up_bytes == wire_bytes(sent.tensors()) < footprint.down_bytes / 10
    assert footprint.peak_bytes == pytest.approx(audit(workshop, own).peak_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": "adamw"}, "training.optim = adamw makes another step of them"),
        ({"max_grad_norm": 1.0}, "training.max_grad_norm = 1.0 makes another step"),
        ({"momentum": 0.9}, "training.momentum = 0.9 makes another step"),
        ({"head_learning_rate": 0.1}, "training.head_learning_rate = 0.1 makes another step"),
        ({"proximal_mu": 0.1}, "training.proximal_mu = 0.1 makes another step"),
    ],
)
def test_steps_that_are_more_than_slopes_are_refused_with_seeds(changes, words):
    entry = assign("bert", BLOCKS, 2, perturbations=2, up_codec="seeds16")
    refuse_seeds(SGD, [entry])
    with pytest.raises(ConfigError, match=f"up_codec seeds16 tells an update by sums of slopes, and {words}"):
        refuse_seeds(replace(SGD, **changes), [entry])
    refuse_seeds(replace(SGD, **changes), [replace(entry, up_codec="none")])


def test_seeds_without_directions_are_refused_and_left_out_of_a_menu():
    with pytest.raises(
        ConfigError, match="up_codec seeds16 sends how far a client went along shared directions"
    ):
        assign("bert", BLOCKS, 2, up_codec="seeds16")
    with pytest.raises(ConfigError, match="down_codec is one of none, bf16"):
        assign("bert", BLOCKS, 2, perturbations=2, down_codec="seeds16")
    grid = Grid(num_blocks=2, targets=("query",), perturbations=(0, 4), up_codecs=("none", "seeds16"))
    assert {(entry.perturbations, entry.up_codec) for entry in build_menu(grid)} == {
        (0, "none"), (4, "none"), (4, "seeds16")
    }  # fmt: skip


# Menus and runs.


def test_a_menu_has_every_entry_with_as_many_directions_but_none_with_recomputation():
    grid = Grid(
        num_blocks=4, targets=("query",), ranks=(2,), perturbations=(0, 8), recompute=(False, True), cuts=(1,)
    )
    menu = build_menu(grid)
    assert {(e.perturbations, e.recompute, e.split) for e in menu} == {
        (0, False, False), (0, True, False), (0, False, True), (0, True, True),
        (8, False, False), (8, False, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perturbations": -1}, "perturbations counts directions, 0 or more, found -1"),
        (
            {"perturbations": 4, "recompute": True},
            "with recompute there is no backward pass to recompute for",
        ),
    ],
)
def test_directions_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(assign("bert", BLOCKS, 2), **changes)


def test_a_forward_only_assignment_reads_back_and_says_so():
    entry = assign("bert", BLOCKS, 2, perturbations=8)
    assert Assignment.from_json(entry.to_json()) == entry
    assert str(entry) == "rank 2 on all 4 blocks forward only, 8 directions, batch 4"


def test_who_has_no_memory_for_a_backward_pass_trains_without_one_beside_those_who_have(tiny, tmp_path):
    config = merged(
        tiny,
        {
            "menu": {"ranks": [2], "depths": ["all"], "perturbations": [0, 2]},
            "fleet": save_fleet(tmp_path / "unlike.csv", [140, 400] * 4),
            "rounds": {"num_rounds": 1, "clients_per_round": 8},
        },
    )
    progress = played(config)
    given = {row.memory_bytes // 1024: Assignment.from_json(row.assignment) for row in progress.clients}
    assert {kib: entry.perturbations for kib, entry in given.items()} == {140: 2, 400: 0}
    assert {row.outcome for row in progress.clients} == {"ok"}
    for row in progress.clients:
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
    assert_same_adapter(progress.state.adapter, played(config).state.adapter)


def test_a_run_that_sends_seeds_counts_what_was_predicted_and_learns(tiny):
    config = merged(
        tiny,
        {
            "menu": {"ranks": [2], "depths": [1], "perturbations": [2], "up_codecs": ["seeds32"]},
            "training": {"optim": "sgd", "max_grad_norm": None, "learning_rate": 0.05, "max_steps": 4},
            "rounds": {"num_rounds": 2, "clients_per_round": 8},
        },
    )
    progress = played(config)
    for row in progress.clients:
        assert row.outcome == "ok"
        assert row.up_bytes == row.predicted_up_bytes < 300
    losses = [row.loss for row in progress.rounds]
    assert losses[-1] < losses[0]
