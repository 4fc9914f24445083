"""The sweep over ZeRO-3 shards: gradients of the whole model with the bits of one process, in any company."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel, BertConfig

from fedray.assignment import HeadOnly
from fedray.errors import ModelError
from fedray.server.lockstep import Order, SplitRound
from fedray.server.passing import PassingHere
from fedray.server.settings import ServerFacts, zero_settings
from fedray.server.shard_blueprint import ShardBlueprint
from fedray.training.evaluate import Elsewhere, evaluate_rows
from fedray.training.job import Job, Update
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import Workshop
from shards import Group, Shards
from shop import BLOCKS, CONFIGS, TARGETS, assign, build, job, start
from split_shop import FAMILIES, STEEP, cut_at, distance, in_process, packs_of, ridden, train_whole
from tiny_run import assert_same_adapter

pytest.importorskip("deepspeed", reason="shards need the extra 'server'")
SIZES = [9, 4, 13, 6, 5, 8, 3, 7]  # rows of each client
ADAM = LocalOptimizer(learning_rate=0.01, max_grad_norm=0.5)
PER_PACK = 4
ORDERS: tuple[Order, ...] = ("sweep", "queue")


def facts_of(workshop: Workshop, num_shards: int) -> ServerFacts:
    anatomy = workshop.backbones["fp32"].anatomy
    sizes = [p.numel() for p in anatomy.model.parameters()]
    return ServerFacts(
        num_params=sum(sizes),
        block_params=sum(p.numel() for p in anatomy.blocks[0].parameters()),
        largest_param=max(sizes),
        dtype="fp32",
        micro_batch=4,
        num_shards=num_shards,
    )


def blueprint_of(family: str, workshop: Workshop, folder: Path, num_shards: int) -> ShardBlueprint:
    anatomy = workshop.backbones["fp32"].anatomy
    if not folder.exists():
        anatomy.model.save_pretrained(folder)
    return ShardBlueprint(
        config=CONFIGS[family],
        checkpoint=folder,
        num_blocks=BLOCKS,
        dtype="fp32",
        task=workshop.task,
        optimizer=workshop.optimizer,
        buffers={name: buffer.clone() for name, buffer in anatomy.model.named_buffers()},
        targets=TARGETS[family],
        attention="memory_efficient",
        recompute=False,
        settings=zero_settings("zero3", facts_of(workshop, num_shards)),
        threads=1,
        device="cpu",
        time_limit_seconds=60,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def groups(folder: Path) -> Iterator[dict[int, Group]]:
    """Groups of 1, 2 and 3 shards, each with every family's model."""
    found = {n: Group(n) for n in (1, 2, 3)}
    try:
        for family in FAMILIES:
            workshop = build(family, SIZES, STEEP)
            for n, group in found.items():
                group.load(family, blueprint_of(family, workshop, folder / family, n))
        yield found
    finally:
        for group in found.values():
            group.close()


def over_shards(group: Group, model: str, workshop: Workshop, jobs: Sequence[Job]) -> dict[int, Update]:
    packs, server = packs_of(jobs, PER_PACK), Shards(group, model, BLOCKS)
    server.open(SplitRound(packs=packs))
    return ridden(workshop, packs, server)


def assert_same_updates(some: Mapping[int, Update], others: Mapping[int, Update]) -> None:
    assert some.keys() == others.keys()
    for client, update in some.items():
        other = others[client]
        assert update.delta is not None
        assert other.delta is not None
        assert_same_adapter(update.delta, other.delta)
        assert update.loss == other.loss


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_over_shards_is_the_step_of_the_whole_model_and_has_the_bits_of_one_process(
    groups: dict[int, Group], family: str, num_shards: int
) -> None:
    workshop = build(family, SIZES, STEEP)
    whole = replace(assign(family, BLOCKS, 2), max_steps=1, batch_size=4)
    knobs = [(cut, tail) for tail in (0, 1) for cut in range(BLOCKS - tail)]
    jobs = [job(workshop, family, c, cut_at(whole, cut, tail)) for c, (cut, tail) in enumerate(knobs)]
    split, alone = over_shards(groups[num_shards], family, workshop, jobs), train_whole(workshop, jobs)
    for client in alone:
        assert distance(split[client].delta, alone[client].delta) < 4e-6  # some dozen roundings of fp32
        assert split[client].loss == pytest.approx(alone[client].loss, rel=1e-6)
    packs = packs_of(jobs, PER_PACK)
    assert_same_updates(split, ridden(workshop, packs, in_process(workshop, packs, num_shards=num_shards)))


# Cut, tail and ranks: nothing trained below the cut, above it, between cut and tail, outside of the head.
UNLIKE = [
    (1, 0, (0, 0, 4, 1)),
    (3, 0, (1, 4, 2, 0)),
    (2, 1, (4, 0, 0, 1)),
    (0, 1, (0, 0, 0, 0)),
    (2, 1, (1, 2, 1, 0)),
    (0, 0, (2, 0, 4, 1)),
    (1, 1, (2, 2, 2, 2)),
]


def unlike(workshop: Workshop) -> list[Job]:
    """Clients that share little, with unlike numbers of steps; the last learns at its cut."""
    whole = replace(assign("bert", BLOCKS, 2), num_epochs=1)
    asked = []
    for cut, tail, ranks in UNLIKE:
        adapter = replace(whole.adapter, ranks=ranks) if any(ranks) else HeadOnly()
        asked.append(replace(cut_at(whole, cut, tail), adapter=adapter, cut_codec="int8" if tail else "none"))
    asked.append(replace(cut_at(whole, 2), local_loss=True))
    return [job(workshop, "bert", client, assignment) for client, assignment in enumerate(asked)]


@pytest.mark.parametrize(
    ("order", "shared", "recompute"),
    [("sweep", False, False), ("queue", False, False), ("sweep", True, False), ("sweep", False, True)],
    ids=["replica", "queue", "shared", "recomputed"],
)
def test_a_round_of_unlike_clients_ends_with_the_bits_of_one_process(
    groups: dict[int, Group], folder: Path, order: Order, shared: bool, recompute: bool
) -> None:
    workshop, group = build("bert", SIZES, ADAM), groups[2]
    server = Shards(group, f"{order} {shared} {recompute}", BLOCKS)
    blueprint = blueprint_of("bert", workshop, folder / "bert", 2)
    group.load(server.model, replace(blueprint, recompute=recompute))
    theirs = job(workshop, "bert", 0, assign("bert", BLOCKS, 4)).sent if shared else None
    packs = packs_of(unlike(workshop), PER_PACK if order == "sweep" else 1)
    server.open(SplitRound(packs=packs, shared=theirs))
    there = ridden(workshop, packs, server, order=order, shared=shared)
    whole = in_process(workshop, packs, num_shards=2, shared=theirs, recompute=recompute)
    assert_same_updates(there, ridden(workshop, packs, whole, order=order, shared=shared))


@pytest.mark.parametrize(
    ("settings", "share"),
    [("zero3_offload", 0.5), ({"zero_optimization": {"stage": 0}}, 1.0)],
    ids=["cpu", "0"],
)
def test_offloaded_parts_and_whole_copies_change_nothing_but_what_a_shard_holds(
    groups: dict[int, Group], folder: Path, settings: str | dict[str, Any], share: float
) -> None:
    workshop, group = build("bert", SIZES, ADAM), groups[2]
    blueprint = blueprint_of("bert", workshop, folder / "bert", 2)
    server = Shards(group, str(settings), BLOCKS)
    group.load(server.model, replace(blueprint, settings=zero_settings(settings, facts_of(workshop, 2))))
    packs = packs_of(unlike(workshop), PER_PACK)
    server.open(SplitRound(packs=packs))
    there, here = ridden(workshop, packs, server), in_process(workshop, packs, num_shards=2)
    assert_same_updates(there, ridden(workshop, packs, here))
    for whole, part, gathered in server.everyone("weight_bytes"):
        assert share * whole <= part <= 1.02 * share * whole
        assert gathered == 0


def test_two_hundred_sweeps_in_one_process_with_cuts_and_kinds_redrawn_and_shards_left_empty(
    groups: dict[int, Group],
) -> None:
    workshop, draw, sweeps = build("llama", SIZES, STEEP), np.random.default_rng(0), 0
    held, server = [], Shards(groups[2], "llama", BLOCKS)
    while sweeps < 200:
        steps, jobs, order = int(draw.integers(2, 9)), [], ORDERS[draw.integers(0, 2)]
        for client in range(int(draw.integers(1, 5))):
            tail = int(draw.integers(0, 2))
            whole = replace(assign("llama", BLOCKS, int(draw.integers(1, 5))), max_steps=steps, batch_size=2)
            asked = cut_at(whole, int(draw.integers(0, BLOCKS - tail)), tail)
            if (
                asked.cut and not tail and draw.random() < 0.5
            ):  # a black box, at each of whose looks all sweep
                asked = replace(asked, perturbations=1)
            jobs.append(replace(job(workshop, "llama", client, asked), learning_rate_scale=1e-6))
        packs = packs_of(jobs, PER_PACK if order == "sweep" else 1)
        server.open(SplitRound(packs=packs))
        there, here = ridden(workshop, packs, server, order=order), in_process(workshop, packs, num_shards=2)
        assert_same_updates(there, ridden(workshop, packs, here, order=order))
        sweeps += steps * (1 if order == "sweep" else len(packs))
        held.append(server.everyone("weight_bytes"))
    assert all(gathered == 0 for shards in held for _, _, gathered in shards)
    assert held[0] == held[-1]


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluation_over_shards_has_the_bits_of_one_process_and_is_that_of_the_whole_model(
    groups: dict[int, Group], family: str, num_shards: int
) -> None:
    workshop, server = build(family, SIZES, STEEP), Shards(groups[num_shards], family, BLOCKS)
    adapter = start(workshop, family, assign(family, BLOCKS, 4), seed=5)
    here = PassingHere(workshop, num_shards, "memory_efficient")
    # The last is fewer rows than shards.
    for rows, cut, tail in ((np.arange(20), 0, 0), (np.arange(20, 31), 1, 2), (np.arange(2), 2, 1)):
        whole = evaluate_rows(workshop, adapter, rows)
        there, near = (
            evaluate_rows(workshop, adapter, rows, Elsewhere(first=cut, end=BLOCKS - tail, middle=middle))
            for middle in (server.passed, here)
        )
        assert there == near
        for row, expected in zip(there, whole, strict=True):
            assert row == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_each_shard_keeps_its_part_of_the_weights_alone(groups: dict[int, Group]) -> None:
    for num_shards, group in groups.items():
        for family in FAMILIES:
            for whole, part, gathered in Shards(group, family, BLOCKS).everyone("weight_bytes"):
                # A tensor is padded to whole parts.
                assert whole / num_shards <= part <= whole / num_shards * 1.02
                assert gathered == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_between_forward_and_backward_no_more_than_a_block_or_the_head_is_held_beside_a_shards_part(
    groups: dict[int, Group], family: str
) -> None:
    workshop, server = build(family, SIZES, STEEP), Shards(groups[2], family, BLOCKS)
    jobs = [job(workshop, family, c, cut_at(assign(family, BLOCKS, 2), 0)) for c in range(2)]
    anatomy = workshop.backbones["fp32"].anatomy
    pieces = {name: size for name, size in anatomy.piece_bytes().items() if name != "stem"}
    server.everyone("watch")
    packs = packs_of(jobs, 1)
    server.open(SplitRound(packs=packs))
    ridden(workshop, packs, server)
    for whole, _, most in server.everyone("watched"):
        assert pieces["block.0"] <= most <= max(pieces.values())
        assert most < whole / 2


def test_a_checkpoint_of_another_model_is_a_sentence_and_who_waits_for_that_shard_gives_up_in_time(
    tmp_path: Path,
) -> None:
    workshop = build("bert", SIZES, STEEP)
    other = BertConfig(**{**CONFIGS["bert"].to_dict(), "intermediate_size": 32})
    AutoModel.from_config(other).save_pretrained(tmp_path)
    blueprint = blueprint_of("bert", workshop, tmp_path, 2)
    group = Group(2)
    try:
        with pytest.raises(ModelError, match=r"dense\.weight' as \[32, 16\], .* describes \[24, 16\]"):
            group.load("bert", replace(blueprint, time_limit_seconds=2.0))
        assert group.pipes[1].poll(60)
        good, error = pickle.loads(group.pipes[1].recv_bytes())
        assert not good
        assert "2000ms" in str(error)
    finally:
        group.close()
