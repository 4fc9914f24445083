"""HetLoRA's tails: which ranks they are, what pulls them, and when a client goes on without them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedray.adapter import Adapter, Factors
from fedray.assignment import Assignment, lora_on_top
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.model.wire import wire_bytes
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.tails import kept_ranks, rank_after
from fedray.training.train import train_pack
from lone import DEEP, Case, real, tracer
from shop import BLOCKS, TARGETS, assign, b_alone, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
PULLED = replace(SGD, tail_penalty=0.3, tail_gamma=0.6)


def adapter(a, b):
    return Adapter(factors={"site": Factors(a=torch.tensor(a), b=torch.tensor(b), scale=1.0)})


@pytest.mark.parametrize(
    ("rank", "gamma", "kept"), [(8, 0.99, 7), (50, 0.99, 49), (200, 0.99, 198), (4, 0.5, 2), (1, 0.99, 1)]
)
def test_a_tail_is_never_empty_but_for_a_single_rank(rank, gamma, kept):
    # Python's round(0.99 * 8) is 8 and round(0.99 * 50) is 50: no tail at all.
    assert kept_ranks(rank, gamma) == kept


@given(st.integers(2, 300), st.floats(0.01, 0.999))
def test_pruning_drops_a_rank_at_least_and_leaves_one(rank, gamma):
    assert 1 <= kept_ranks(rank, gamma) < rank


@pytest.mark.parametrize(
    ("before", "after", "rank"),
    [
        # Of two ranks the tail is the second: |A| = 5, |B| = 2 before; 5 and 1.9 after.
        ([[1.0, 2.0]], [[9.0, 1.9]], 1),
        ([[1.0, 2.0]], [[0.1, 2.0]], 2),  # the first rank is none of it
        ([[1.0, 0.0]], [[1.0, 0.0]], 2),  # a tail of norm 0 does not shrink
        ([[1.0, 0.0]], [[1.0, 0.5]], 2),
        ([[1.0, 0.5]], [[1.0, 0.0]], 1),
    ],
)
def test_a_client_drops_its_tail_if_and_only_if_that_shrank(before, after, rank):
    a = [[1.0, 1.0], [3.0, 4.0]]
    assert rank_after(adapter(a, before), adapter(a, after), 0.99) == rank


def test_a_growing_a_outweighs_a_shrinking_b():
    # 5 * 2 = 10 before, 10 * 1.5 = 15 after: it is the product that counts.
    sent, trained = (
        adapter([[1.0, 1.0], [3.0, 4.0]], [[1.0, 2.0]]),
        adapter([[1.0, 1.0], [6.0, 8.0]], [[1.0, 1.5]]),
    )
    assert rank_after(sent, trained, 0.99) == 2
    assert rank_after(trained, sent, 0.99) == 1


@pytest.mark.parametrize("train_a", [True, False], ids=["A and B", "B alone"])
def test_the_pull_is_the_gradient_that_torch_finds_of_the_penalty(train_a):
    entry = assign("bert", BLOCKS, 5, max_steps=1)
    entry = entry if train_a else b_alone(entry)
    plain, pulled = (build("bert", [4], optimizer) for optimizer in (SGD, PULLED))
    (without,) = train_pack(plain, [job(plain, "bert", 0, entry)])
    own = job(pulled, "bert", 0, entry)
    (update,) = train_pack(pulled, [own])
    for site, sent in own.sent.factors.items():
        a, b = (tensor.clone().requires_grad_() for tensor in (sent.a, sent.b))
        (0.3 * a[3:].norm() * b[:, 3:].norm()).backward()  # floor(0.6 * 5) = 3
        moved, before = update.delta.factors[site], without.delta.factors[site]
        torch.testing.assert_close(moved.b, before.b - 0.05 * b.grad, rtol=1e-4, atol=1e-6)
        if train_a:
            torch.testing.assert_close(moved.a, before.a - 0.05 * a.grad, rtol=1e-4, atol=1e-6)


def test_a_b_of_zero_is_not_pulled_and_stays_a_number():
    workshop = build("bert", [4], PULLED)
    own = job(workshop, "bert", 0, assign("bert", BLOCKS, 4, max_steps=2))
    fresh = {site: replace(f, b=torch.zeros_like(f.b)) for site, f in own.sent.factors.items()}
    (update,) = train_pack(workshop, [replace(own, sent=replace(own.sent, factors=fresh))])
    assert update.message == ""


def test_clients_of_unlike_ranks_and_depths_are_pulled_together_as_alone():
    workshop = build("bert", [9, 4, 6], PULLED)
    shapes = [(4, 2), (1, 8), (4, 5)]
    jobs = [
        replace(job(workshop, "bert", i, assign("bert", *shape)), observables=("kept_rank",))
        for i, shape in enumerate(shapes)
    ]
    for own, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [own])
        assert torch.equal(update.statistics["kept_rank"], alone.statistics["kept_rank"])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-4, atol=1e-6)


def test_a_strong_pull_shrinks_the_tail_and_the_client_says_so():
    for penalty, kept in ((0.0, None), (50.0, 4.0)):
        workshop = build("bert", [6], replace(SGD, learning_rate=1e-3, tail_penalty=penalty))
        own = replace(job(workshop, "bert", 0, assign("bert", BLOCKS, 5)), observables=("kept_rank",))
        (update,) = train_pack(workshop, [own])
        assert kept is None or update.statistics["kept_rank"].tolist() == [kept]


def test_the_pull_is_in_the_footprint():
    lora = lora_on_top(DEEP, DEEP, 4, targets=TARGETS["bert"])
    case = Case(
        family="bert",
        assignment=Assignment(blocks=tuple(range(DEEP)), adapter=lora, batch_size=3),
        shape=WorkShape(rows=3, tokens=16, attention="memory_efficient"),
        optimizer=PULLED,
    )
    workshop, own = real(case)
    footprint, seen = tracer(case, workshop)(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.02)
    plain = replace(case, optimizer=SGD)
    assert footprint.moved_bytes > tracer(plain, real(plain)[0])(case.assignment, case.shape).moved_bytes
    assert footprint.up_bytes == wire_bytes(own.sent.tensors())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"tail_penalty": 0.1}, "menu": {"cuts": [1]}}, "tail_penalty = 0.1 is of clients that"),
        ({"training": {"tail_penalty": 0.1}, "menu": {"tunings": ["full"]}}, "tail_penalty has no effect"),
    ],
)
def test_a_penalty_that_cannot_take_effect_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(changes)
