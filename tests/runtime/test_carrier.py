"""What a carrier answers: equal orders, equal bits; a moved backbone is put back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedray.adapter import Factors
from fedray.assignment import HeadOnly
from fedray.placement import WallSeconds
from fedray.runtime.carrier import AuditJob, Carrier, EvaluateRows, TrainPack, load_of
from fedray.runtime.flight import Flight, Timed
from fedray.runtime.local import LocalRuntime
from fedray.scene import furnish
from fedray.seeds import derive_seed
from fedray.training.job import Job
from fedray.training.shapes import site_ranks
from tiny_run import assert_same_tensors, begun


@pytest.fixture(scope="module")
def scene(tiny):
    return begun(tiny)


@pytest.fixture(scope="module")
def parts(scene):
    return furnish(scene[0], "cpu")[:2]


def order_of(begin, clients, base_delta=None):
    scene, progress = begin
    assignment = scene.menu[-1]
    ranks = site_ranks(scene.anatomy, assignment)
    jobs = tuple(
        Job(
            round=1,
            client_id=client,
            dispatch=0,
            version=0,
            seed=0,
            assignment=assignment,
            attention="memory_efficient",
            sent=scene.rule.send(progress.state, ranks, derive_seed(0, "dispatch", 1, client)),
            num_rows=len(scene.partitions.train[client]),
            num_steps=assignment.num_steps(len(scene.partitions.train[client])),
            tokens=int(scene.tokens[client]),
        )
        for client in clients
    )
    return TrainPack(jobs=jobs, base_delta=base_delta or {})


def delta_of(scene, size):
    draw = torch.Generator().manual_seed(1)
    site = next(iter(site_ranks(scene[0].anatomy, scene[0].menu[-1])))
    a, b = torch.randn(2, 16, generator=draw), size * torch.randn(16, 2, generator=draw)
    return {site: Factors(a=a, b=b, scale=0.5)}


def test_another_carrier_answers_the_same_order_with_the_same_bits(scene, parts):
    order = order_of(scene, (1, 4))
    one, other = (Carrier(*parts).carry_out(order) for _ in range(2))
    assert [update.client_id for update in one] == [1, 4]
    for mine, theirs in zip(one, other, strict=True):
        assert_same_tensors(mine.coded, theirs.coded)
        assert mine.loss == theirs.loss


def test_what_a_carrier_did_before_changes_no_answer(scene, parts):
    carrier, order = Carrier(*parts), order_of(scene, (2,))
    first = carrier.carry_out(order)
    carrier.carry_out(order_of(scene, (3, 5), delta_of(scene, 1.0)))
    carrier.carry_out(AuditJob(job=order.jobs[0], base_delta=delta_of(scene, 1.0), limit_bytes=None))
    carrier.carry_out(EvaluateRows(adapter=scene[1].state.adapter, rows=np.arange(9)))
    assert_same_tensors(carrier.carry_out(order)[0].coded, first[0].coded)


def test_a_base_delta_is_trained_on_and_one_of_zeros_changes_nothing(scene, parts):
    carrier = Carrier(*parts)
    plain, still, moved = (
        carrier.carry_out(order_of(scene, (2,), delta))[0]
        for delta in ({}, delta_of(scene, 0.0), delta_of(scene, 1.0))
    )
    assert still.loss == plain.loss
    assert_same_tensors(still.coded, plain.coded)
    assert moved.loss != plain.loss


def test_an_audit_is_stopped_at_its_limit_and_not_below(scene, parts):
    carrier, job = Carrier(*parts), order_of(scene, (2,)).jobs[0]
    free = carrier.carry_out(AuditJob(job=job, base_delta={}, limit_bytes=None))
    assert free.terms.total == free.peak_bytes
    exact = carrier.carry_out(AuditJob(job=job, base_delta={}, limit_bytes=free.peak_bytes))
    short = carrier.carry_out(AuditJob(job=job, base_delta={}, limit_bytes=free.peak_bytes - 1))
    assert (free.over_limit, exact.over_limit, short.over_limit) == (False, False, True)


def test_the_local_runtime_answers_in_the_order_asked(scene, parts):
    orders = [order_of(scene, (client,)) for client in (6, 0, 3)]
    answers = [done.answer[0].client_id for done in LocalRuntime(*parts).carry_out(orders)]
    assert answers == [6, 0, 3]


def test_a_longer_order_is_one_with_more_steps_tokens_or_trained_blocks(scene):
    def work(**changed):
        return load_of(replace(order, jobs=(replace(job, **changed),))).work

    order = order_of(scene, (1,))
    (job,) = order.jobs
    assert work(num_steps=2 * job.num_steps) == 2 * work()
    assert work(tokens=3 * job.tokens) == 3 * work()
    assert work(assignment=replace(job.assignment, adapter=HeadOnly())) < work()


def test_orders_that_took_longer_go_out_first_in_the_next_call(scene):
    # One step of four clients' rows each: more work than many small steps of one, and here less time.
    wide, long = order_of(scene, (0, 1, 2, 3)), order_of(scene, (4,))
    wide = replace(wide, jobs=tuple(replace(job, num_steps=2) for job in wide.jobs))
    long = replace(long, jobs=(replace(long.jobs[0], num_steps=6),))
    assert load_of(wide).work > load_of(long).work
    assert load_of(wide).passes < load_of(long).passes
    wall, orders = WallSeconds(), [long, wide] * 4
    first = Flight(orders, 2, wall)
    assert list(first.waiting) == [1, 3, 5, 7, 0, 2, 4, 6]
    for place in list(first.waiting):
        first.sets_out(place, "a seat", f"answer {place}")
        answer = first.is_back(place, Timed(answer=[], wall_seconds=3.0 if orders[place] is long else 1.0))
        assert answer == []
    assert first.busy == ["a seat"] * 8
    assert set(first.attempts.values()) == {1}
    assert not first.waiting
    assert list(Flight(orders, 2, wall).waiting) == [0, 2, 4, 6, 1, 3, 5, 7]
    # Where each order has an actor of its own none goes before another.
    assert list(Flight(orders, 0, wall).waiting) == list(range(8))
