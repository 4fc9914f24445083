"""Clients under a cut that get a loss alone: the whole model's looks, in any company, to the byte."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedray.adapter import Adapter, difference
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.mechanism import CutNoise
from fedray.menu import Grid, build_menu
from fedray.model.counter import CPU_FLASH_FLOPS, ByteCounter
from fedray.server.lockstep import Traffic, run_lockstep, updates_of
from fedray.training.audit import audit
from fedray.training.client_half import PackHalves
from fedray.training.forward_only import Directions
from fedray.training.job import Job, Update
from fedray.training.optimizer import STILL, LocalOptimizer
from fedray.training.own_side import base_of
from fedray.training.packed import course_of, loss_of_clients
from fedray.training.shares import client_share, server_share
from fedray.training.train import Workshop, local_batches, padded_batch, stack_of, unstack
from lone import Case, real, tracer
from shop import BLOCKS, DEVICE, TARGETS, assign, build, job
from split_shop import cut_at, distance, in_process, packs_of, targets_of, train_split

# Far enough apart that fp32 losses tell, near enough that a loss is a line between.
SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None, perturbation_scale=0.01)
CLIPPED = replace(SGD, optim="adamw", learning_rate=1e-3, max_grad_norm=0.01)


def blind(family: str, cut: int, rank: int = 2, **changes: object) -> Assignment:
    return replace(cut_at(assign(family, BLOCKS, rank, perturbations=2), cut), **changes)  # type: ignore[arg-type]


def looking_at_the_whole(workshop: Workshop, own: Job) -> tuple[Adapter, float]:
    """The forward-only client that holds the whole model, with directions of what lies below its cut."""
    backbone, a = workshop.backbones["fp32"], own.assignment
    below = client_share(backbone.anatomy, a, own.sent)
    stack = stack_of([below], workshop.optimizer, DEVICE)
    stack.directions = Directions([own], [below], workshop.optimizer, DEVICE)
    still = stack_of([server_share(backbone.anatomy, a, own.sent)], STILL, DEVICE)
    above, head = still.parts(still.params, None)
    whole = replace(a, blocks=tuple(range(BLOCKS)), split=False, cut_codec="none")
    course = replace(course_of(whole, own.attention, recompute=False), tight=True)
    total = rows_seen = 0.0
    for rows in local_batches(workshop, own, longest_first=False):
        batch = padded_batch(workshop, [rows], a.batch_size)
        loss = loss_of_clients(backbone, course, workshop.task, batch)
        mean = stack.step(lambda factors, _, loss=loss: loss({**factors, **above}, head))
        total, rows_seen = total + float(mean) * len(rows), rows_seen + len(rows)
    (end,) = unstack(stack, [below])
    return difference(end, below), total / rows_seen


@pytest.mark.parametrize("optimizer", [SGD, CLIPPED], ids=["sgd", "clipped adamw"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_a_black_box_is_the_forward_only_client_of_the_whole_model_that_looks_along_its_own_share(
    family: str, optimizer: LocalOptimizer
) -> None:
    workshop = build(family, [9, 5, 6], optimizer)
    jobs = [job(workshop, family, c, blind(family, c + 1)) for c in range(3)]
    found = train_split(workshop, jobs)
    for own in jobs:
        expected, loss = looking_at_the_whole(workshop, own)
        update = found[own.client_id]
        assert update.delta is not None
        assert distance(update.delta, expected) < 2e-3
        assert update.loss == pytest.approx(loss, rel=1e-5)
        # What is not trained is no part of the update, nor of what that is measured against.
        below = client_share(workshop.backbones["fp32"].anatomy, own.assignment, own.sent)
        base = base_of(workshop.backbones["fp32"].anatomy, own)
        assert base.tensors().keys() == update.delta.tensors().keys() == below.tensors().keys()


def mixed(workshop: Workshop) -> list[Job]:
    """Black boxes and others, of unlike cuts, ranks and steps; one has a tail, one learns at its cut."""
    whole = assign("bert", BLOCKS, 2)
    asked = [
        blind("bert", 2),
        cut_at(whole, 1),
        blind("bert", 1, 4, num_epochs=2),
        cut_at(whole, 2, tail=1),
        blind("bert", 2, perturbations=1),
        replace(cut_at(whole, 3), local_loss=True),
    ]
    return [job(workshop, "bert", client, assignment) for client, assignment in enumerate(asked)]


def assert_near(some: Update, other: Update, tolerance: float) -> None:
    assert some.delta is not None
    assert other.delta is not None
    assert distance(some.delta, other.delta) < tolerance
    assert some.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("per_pack", [1, 8])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_riders_of_either_kind_get_what_they_get_alone(per_pack: int, num_shards: int) -> None:
    workshop = build("bert", [9, 4, 6, 7, 13, 5], replace(SGD, max_grad_norm=1.0))
    jobs = mixed(workshop)
    together = train_split(workshop, jobs, num_shards=num_shards, per_pack=per_pack)
    for own in jobs:
        alone = train_split(workshop, [own], order="queue")[own.client_id]
        # A slope is a difference of nearly equal losses, whose rounding company changes.
        assert_near(together[own.client_id], alone, 1e-2 if own.assignment.is_black_box else 1e-4)


def test_nothing_above_the_cut_is_trained_and_of_it_nothing_comes_back() -> None:
    workshop = build("bert", [9, 5], SGD)
    jobs = [
        job(workshop, "bert", 0, blind("bert", 2)),
        job(workshop, "bert", 1, cut_at(assign("bert", 4, 2), 2)),
    ]
    found = train_split(workshop, jobs)
    looked, trained = found[0].delta, found[1].delta
    assert looked is not None
    assert trained is not None
    assert {site.split(".")[2] for site in looked.factors} == {"0", "1"}
    assert not looked.head
    assert {site.split(".")[2] for site in trained.factors} == {"0", "1", "2", "3"}
    assert trained.head


# What crosses, and what it costs.


def traffic_of(workshop: Workshop, jobs: Sequence[Job]) -> Traffic:
    packs = packs_of(jobs, 8)
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
    server = in_process(workshop, packs, num_shards=1)
    traffic = run_lockstep(clients, server, "sweep", shared=False)
    assert dict(updates_of(packs, clients, server))
    return traffic


def test_two_steps_send_hidden_states_up_eight_times_and_get_four_bytes_each() -> None:
    # By hand: six rows are steps of four and two. A direction is two looks, two directions are four; at each
    # 16 numbers of 4 bytes a token go up, a length and a label of 4 bytes a row, and 4 bytes come down. Of a
    # step that ends with a norm nothing is told, though gradients are clipped.
    workshop = build("bert", [6], CLIPPED)
    tokens = int(workshop.pool.lengths[:6].sum())
    for codec, width in (("none", 16 * 4), ("int8", 16 + 4)):
        traffic = traffic_of(workshop, [job(workshop, "bert", 0, blind("bert", 1, cut_codec=codec))])
        assert traffic.up_bytes[0] == 4 * (tokens * width + 6 * 8)
        assert traffic.down_bytes[0] == 2 * 4 * 4
        assert traffic.num_messages[0] == 2 * 4 * 2


CASE = Case(
    family="bert",
    assignment=Assignment(
        blocks=(0, 1),
        split=True,
        adapter=Lora(ranks=(4, 0, 2, 2), targets=TARGETS["bert"]),
        batch_size=3,
        perturbations=3,
    ),
    shape=WorkShape(rows=3, tokens=24, attention="memory_efficient"),
    optimizer=LocalOptimizer(),
)


def case_of(family: str) -> Case:
    adapter = replace(CASE.assignment.adapter, targets=TARGETS[family])
    return replace(CASE, family=family, assignment=replace(CASE.assignment, adapter=adapter))


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_a_black_box_needs_the_memory_of_inference_below_its_cut(family: str) -> None:
    case = case_of(family)
    workshop, own = real(case)
    trace = tracer(case, workshop)
    footprint = trace(case.assignment, case.shape)
    assert footprint.peak_bytes == pytest.approx(audit(workshop, own).peak_bytes, rel=0.005)
    plain = trace(replace(case.assignment, perturbations=0), case.shape)
    assert footprint.backward_flops == 0
    assert footprint.forward_flops == pytest.approx(6 * plain.forward_flops, rel=0.02)
    assert footprint.terms.activations < plain.terms.activations / 2
    assert footprint.peak_bytes < plain.peak_bytes
    # What lies above is as it was: what is sent down and up is the client's own, and so is what is trained.
    assert footprint.up_bytes == plain.up_bytes
    anatomy = workshop.backbones["fp32"].anatomy
    below = client_share(anatomy, case.assignment, own.sent).tensors().values()
    assert footprint.trained_params == sum(tensor.numel() for tensor in below) < plain.trained_params


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_a_look_costs_the_server_a_forward_and_the_activations_of_one_block(family: str) -> None:
    case = case_of(family)
    workshop, own = real(case)
    trace = tracer(case, workshop)
    share = trace(case.assignment, case.shape).server
    plain = trace(replace(case.assignment, perturbations=0), case.shape).server
    assert share is not None
    assert plain is not None
    assert (share.comes_down, plain.comes_down) == (False, True)
    assert share.activation_bytes < plain.activation_bytes / 2
    assert share.adapter_bytes < plain.adapter_bytes
    flops, counter = FlopCounterMode(display=False, custom_mapping=dict(CPU_FLASH_FLOPS)), ByteCounter()
    for seen in (flops, counter):
        packs = {0: [own]}
        clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
        server = in_process(workshop, packs, num_shards=1)
        sent = clients.ascend(0)
        if isinstance(seen, ByteCounter):
            model = workshop.backbones["fp32"].anatomy.model
            seen.hold([*model.parameters(), *model.buffers()], "weights")
            seen.hold(list(sent[0][0].states.tensors.values()), "activations")
        with seen:
            answers = server.forward(sent)
        assert answers[0][0].num_bytes == 4
        assert server.backward({}) == ({}, [])
    assert share.flops == flops.get_total_flops()
    held = counter.peak - counter.peak_terms["weights"]
    assert share.activation_bytes * 0.99 < held < (share.activation_bytes + share.adapter_bytes) * 1.01


def test_both_looks_along_a_direction_are_rounded_alike_and_noise_is_drawn_for_each() -> None:
    workshop = build("bert", [4], replace(SGD, perturbation_scale=1e-12))
    own = job(workshop, "bert", 0, blind("bert", 1, cut_codec="int8"))
    sent = []
    for noise in (None, CutNoise(clip_norm=1.0, noise_multiplier=1.0)):
        clients = PackHalves(
            workshop, {0: [replace(own, cut_noise=noise)]}, targets_of(workshop), clips_as_one=True
        )
        server = in_process(workshop, {0: [own]}, num_shards=1)
        looks = []
        for number in range(4):
            up = clients.ascend(number)
            looks.append(up[0][0].states.tensors["values"])
            clients.descend(server.forward(up))
        sent.append(looks)
    plain, noisy = sent
    assert torch.equal(plain[0], plain[1])
    assert not torch.equal(plain[1], plain[2])
    assert not torch.equal(noisy[0], noisy[1])


# What does not go.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tail": 1}, r"answers with a loss alone, and tail = 1 asks it for hidden states; drop one"),
        ({"local_loss": True}, "and local_loss asks it for nothing"),
        ({"adapter": HeadOnly()}, "and no block below the cut has a rank that its losses could move"),
        ({"up_codec": "seeds16"}, "and up_codec seeds16 tells of directions of a whole adapter"),
        ({"recompute": True}, "with recompute there is no backward pass to recompute for"),
        ({"perturbations": -1}, "perturbations counts directions, 0 or more, found -1"),
    ],
)
def test_what_a_loss_alone_is_not_enough_for_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        blind("bert", 2, **changes)


def test_a_menu_has_black_boxes_at_every_cut_that_trains_something_below() -> None:
    grid = Grid(
        num_blocks=4, targets=("query",), ranks=(2,), depths=("all", 2), perturbations=(0, 8), cuts=(1, 3),
        tails=(0, 1), whole=False,
    )  # fmt: skip
    menu = build_menu(grid)
    blind_ones = {(e.cut, e.tail, e.num_trained_blocks) for e in menu if e.is_black_box}
    # With two trained blocks of four nothing is trained below the first cut, and one block below the third.
    assert blind_ones == {(1, 0, 1), (3, 0, 3), (3, 0, 1)}
    # Ranks that nobody trains are no size: who takes the largest gives gradients to whom they fit.
    assert {e.sum_of_ranks for e in menu if e.cut == 3 and e.is_black_box} == {2, 6}
    first = next(entry for entry in menu if entry.is_black_box)
    assert str(first) == "rank 2 on 1 of 4 blocks forward only, 8 directions, cut 1, batch 8"
    with pytest.raises(ConfigError, match="no block below the cut has a rank"):
        build_menu(replace(grid, depths=(1,), cuts=(1, 2)))
