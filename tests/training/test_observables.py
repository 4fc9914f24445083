"""Statistics of blocks: a linear layer whose gradient is known, then packs, footprints and wires."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from fedray.cost import WorkShape
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.observable import BLOCK_OBSERVABLES, OBSERVABLES
from fedray.training.audit import audit
from fedray.training.data import FILLER
from fedray.training.footprint import FootprintTracer, TraceSubject
from fedray.training.link import on_its_way
from fedray.training.observables import BlockStatistics
from fedray.training.optimizer import LocalOptimizer
from fedray.training.stack import Stack
from fedray.training.train import train_pack
from shop import BLOCKS, CONFIGS, LABELS, TASKS, assign, build, job

STILL = LocalOptimizer(optim="sgd", learning_rate=0.0, max_grad_norm=0.01)
SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=0.5)


def linear(clients, block, num_blocks=3, optimizer=STILL):
    """Stacked factors of one site ``s``, one input [1, 1] and the loss 2 * b @ a @ x, a client each."""
    params = {
        "s.lora_A": torch.tensor([[a] for a, _ in clients]),  # [C, 1, 2]
        "s.lora_B": torch.tensor([[[b]] for _, b in clients]),  # [C, 1, 1]
        "head.weight": torch.ones(len(clients), 1, 1),
    }
    scales = {"s": torch.full((len(clients), 1, 1), 2.0)}
    stack = Stack(params, {}, scales, optimizer, torch.zeros(len(clients)))
    stack.statistics = BlockStatistics(BLOCK_OBSERVABLES, {"s": block}, num_blocks, stack.steps)
    return stack


def loss(factors, head):
    f = factors["s"]
    product = f.scale * f.b @ f.a  # [M, 1, 2]
    return product.sum((1, 2)) + head["weight"].square().sum((1, 2))


def test_a_linear_layers_statistics_are_those_worked_out_by_hand():
    # a = [1, 2], b = 3, x = [1, 1]: the gradient of 2 b a x is 2 b x = [6, 6] for a, and 2 a x = 6 for b.
    stack = linear([([1.0, 2.0], 3.0)], block=1)
    stack.step(loss)
    sums = stack.statistics.sums
    assert sums["grad_norm"][0].tolist() == pytest.approx([0, (36 * 3) ** 0.5, 0])
    assert sums["fisher"][0].tolist() == pytest.approx([0, 36 * 3, 0])  # divided by 3 parameters at the end
    assert sums["salience"][0].tolist() == pytest.approx([0, 6 * 1 + 6 * 2 + 6 * 3, 0])


def test_steps_add_up_for_those_who_take_them_and_clipping_comes_after():
    # Client 1: a = [1, -1], b = 1: gradients [2, 2] and 0.
    stack = linear([([1.0, 2.0], 3.0), ([1.0, -1.0], 1.0)], block=0)
    stack.step(loss)
    stack.step(loss, torch.tensor([1]))
    sums = stack.statistics.sums
    assert sums["grad_norm"][:, 0].tolist() == pytest.approx([108**0.5, 2 * 8**0.5])
    assert sums["fisher"][:, 0].tolist() == pytest.approx([108, 2 * 8])
    assert sums["salience"][:, 0].tolist() == pytest.approx([36, 2 * 4])


def mixed(family, observables=OBSERVABLES):
    depths_ranks_rows = [(4, 2, 9), (1, 4, 4), (2, 1, 13), (4, 8, 6)]
    workshop = build(family, [rows for _, _, rows in depths_ranks_rows], SGD)
    jobs = [job(workshop, family, i, assign(family, d, r)) for i, (d, r, _) in enumerate(depths_ranks_rows)]
    return workshop, [replace(work, observables=observables) for work in jobs]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_clients_of_unlike_ranks_and_depths_report_from_a_pack_what_they_report_alone(family):
    workshop, jobs = mixed(family)
    for work, packed in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [work])
        assert list(packed.statistics) == list(OBSERVABLES)
        depth = sum(rank > 0 for rank in work.assignment.adapter.ranks)
        squared, alones = packed.statistics["squared_loss"], alone.statistics["squared_loss"]
        torch.testing.assert_close(squared, alones, rtol=1e-4, atol=0)
        for name in BLOCK_OBSERVABLES:
            values = packed.statistics[name]
            assert values.shape == (BLOCKS,)
            assert values.isnan().tolist() == [True] * (BLOCKS - depth) + [False] * depth
            torch.testing.assert_close(values, alone.statistics[name], rtol=1e-4, atol=1e-9, equal_nan=True)
            assert (values[-depth:] > 0).all()


def test_the_mean_square_is_over_a_clients_own_parameters_not_its_packs():
    """With one step, mean squares times counts and squared norms are the same sums."""
    workshop, jobs = mixed("bert")
    jobs = [replace(work, assignment=replace(work.assignment, max_steps=1), num_steps=1) for work in jobs]
    for work, update in zip(jobs, train_pack(workshop, jobs), strict=True):
        ours = [f.a.numel() + f.b.numel() for site, f in work.sent.factors.items() if "layer.3." in site]
        assert len(ours) == 2
        fisher, norm = update.statistics["fisher"][3], update.statistics["grad_norm"][3]
        assert float(fisher) * sum(ours) == pytest.approx(float(norm) ** 2, rel=1e-4)


def test_the_squared_loss_is_the_mean_over_rows_whatever_batches_and_packs_they_came_in():
    # Untrained, with five rows in batches of four: the sixth client's rows are the others', one each.
    still = replace(assign("bert", 2, 2), num_epochs=2)
    workshop = build("bert", [1, 1, 1, 1, 1], STILL)
    first = job(workshop, "bert", 0, still)
    alone = train_pack(workshop, [replace(first, client_id=k) for k in range(5)])
    together = replace(workshop, partitions=(np.arange(5), np.arange(2)))
    jobs = [
        replace(first, client_id=k, num_rows=rows, num_steps=still.num_steps(rows), observables=OBSERVABLES)
        for k, rows in enumerate((5, 2))
    ]
    rows = np.array([update.loss for update in alone])
    for update, own in zip(train_pack(together, jobs), (rows, rows[:2]), strict=True):
        assert update.statistics["squared_loss"].tolist() == pytest.approx([(own**2).mean()], rel=1e-5)


def test_being_watched_changes_no_bit_of_training():
    workshop, jobs = mixed("bert")
    plain = [replace(work, observables=()) for work in jobs]
    for watched, alone in zip(train_pack(workshop, jobs), train_pack(workshop, plain), strict=True):
        assert alone.statistics == {}
        ours, theirs = watched.delta.tensors(), alone.delta.tensors()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_client_that_failed_reports_nothing():
    workshop, jobs = mixed("bert")
    spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in jobs[0].sent.head.items()}
    (update,) = train_pack(workshop, [replace(jobs[0], sent=replace(jobs[0].sent, head=spoilt))])
    assert (update.statistics, update.tensors()) == ({}, {})


@pytest.mark.parametrize("asked", [("fisher",), OBSERVABLES])
def test_statistics_are_charged_bytes_memory_and_traffic_as_they_are(asked):
    workshop, (work, *_) = mixed("bert", asked)
    (update,) = train_pack(workshop, [work])
    anatomy = dissect(empty_backbone(CONFIGS["bert"], "classification", "fp32"))

    def meta_batch(rows, tokens):
        return {k: t.to("meta") for k, t in workshop.pool.batch(np.full(rows, FILLER), tokens).items()}

    def traced(observables):
        subject = TraceSubject(
            anatomies={"fp32": anatomy},
            task=TASKS["bert"],
            num_labels=LABELS,
            optimizer=SGD,
            meta_batch=meta_batch,
            observables=observables,
        )
        longest = int(workshop.pool.lengths[workshop.partitions[0]].max())
        shape = WorkShape(rows=4, tokens=-(-longest // 8) * 8, attention="memory_efficient")
        return FootprintTracer(subject, None)(work.assignment, shape)

    found, plain = traced(asked), traced(())
    assert found.up_bytes == len(safetensors.torch.save(on_its_way(work, update).tensors()))
    values = sum(1 if name == "squared_loss" else BLOCKS for name in asked)
    assert found.up_bytes >= plain.up_bytes + 4 * values
    assert found.down_bytes == plain.down_bytes == plain.up_bytes
    assert found.moved_bytes > plain.moved_bytes
    assert audit(workshop, work).peak_bytes == pytest.approx(found.peak_bytes, rel=0.02)
