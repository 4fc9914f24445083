"""Law L8: a step across a cut is the step of the whole model, whatever the cut, the tail and the company."""

from dataclasses import replace

import pytest

from fedray.server.lockstep import Order, run_lockstep, updates_of
from fedray.training.client_half import PackHalves
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packs import form_packs
from shop import BLOCKS, assign, b_alone, build, job
from split_shop import (
    FAMILIES,
    SGD,
    STEEP,
    cut_at,
    distance,
    in_process,
    targets_of,
    train_split,
    train_whole,
)

CLIPPED = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=0.01)


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_across_any_cut_is_the_step_of_the_whole_model(family: str, tail: int) -> None:
    cuts = range(BLOCKS - tail)
    workshop = build(family, [3 + c for c in cuts], STEEP)
    whole = replace(assign(family, BLOCKS, 2), max_steps=1, batch_size=4)
    jobs = [job(workshop, family, c, cut_at(whole, c, tail)) for c in cuts]
    split, alone = train_split(workshop, jobs), train_whole(workshop, jobs)
    for client in cuts:
        assert split[client].delta is not None
        assert distance(split[client].delta, alone[client].delta) < 4e-6  # some dozen roundings of fp32
        assert split[client].loss == pytest.approx(alone[client].loss, rel=1e-6)


@pytest.mark.parametrize("optimizer", [SGD, CLIPPED], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("order", ["sweep", "queue"])
@pytest.mark.parametrize("train_a", [True, False], ids=["A and B", "B alone"])
def test_replica_ends_where_whole_models_end_for_any_mix_of_cuts(
    optimizer: LocalOptimizer, order: Order, train_a: bool
) -> None:
    workshop = build("bert", [9, 4, 13, 6, 5, 8], optimizer)
    knobs = [(0, 0, 2), (1, 1, 4), (3, 0, 8), (2, 1, 1), (1, 0, 2), (2, 0, 4)]  # cut, tail, rank
    plans = [cut_at(assign("bert", BLOCKS, rank, num_epochs=2), cut, tail) for cut, tail, rank in knobs]
    jobs = [job(workshop, "bert", c, p if train_a else b_alone(p)) for c, p in enumerate(plans)]
    per_pack = 8 if order == "sweep" else 1
    split = train_split(workshop, jobs, order=order, num_shards=2, per_pack=per_pack)
    alone = train_whole(workshop, jobs)
    # A clipped step moves some weights so little that their own rounding shows in the difference.
    tolerance = 1e-4 if optimizer is SGD else 1e-3
    for client in alone:
        assert distance(split[client].delta, alone[client].delta) < tolerance
        assert split[client].loss == pytest.approx(alone[client].loss, rel=1e-5)


def test_statistics_of_the_blocks_below_a_cut_and_of_the_tail_are_those_of_the_whole_model() -> None:
    workshop = build("bert", [9, 6, 5], CLIPPED)
    whole = assign("bert", BLOCKS, 4)
    jobs = [
        replace(job(workshop, "bert", c, cut_at(whole, cut, tail)), observables=("grad_norm", "fisher"))
        for c, (cut, tail) in enumerate([(2, 1), (1, 1), (0, 1)])
    ]
    split, alone = train_split(workshop, jobs), train_whole(workshop, jobs)
    for client, own in enumerate(
        [[True, True, False, True], [True, False, False, True], [False] * 3 + [True]]
    ):
        for name, values in alone[client].statistics.items():
            found = split[client].statistics[name]
            assert (~found.isnan()).tolist() == own
            assert found[own].tolist() == pytest.approx(values[own].tolist(), rel=1e-3)


def test_a_frozen_bottom_sends_each_row_once_and_gets_nothing_back() -> None:
    workshop = build("bert", [9, 6], SGD)
    frozen = replace(cut_at(assign("bert", 2, 4), 2), num_epochs=3)
    jobs = [job(workshop, "bert", c, frozen) for c in range(2)]
    packs = dict(enumerate(form_packs(jobs, 8)))
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
    server = in_process(workshop, packs, num_shards=1)
    traffic = run_lockstep(clients, server, "sweep", shared=False)
    tokens = [int(workshop.pool.lengths[own].sum()) for own in workshop.partitions]
    rows = [len(own) for own in workshop.partitions]
    # Hidden states of every token in 4 bytes a number, then a length and a label for every row.
    assert traffic.up_bytes == {c: tokens[c] * 16 * 4 + rows[c] * 8 for c in range(2)}
    assert not any(traffic.down_bytes.values())
    split = {u.client_id: u for _, found in updates_of(packs, clients, server) for u in found}
    alone = train_whole(workshop, jobs)
    for client in alone:
        assert distance(split[client].delta, alone[client].delta) < 1e-4
