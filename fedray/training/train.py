"""A pack of jobs trained, from what was sent to what comes back. One pack gives the same bits anywhere."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedray.adapter import WEIGHTS, Adapter, Factors, difference, is_finite
from fedray.assignment import Assignment, Dtype, HeadOnly, Lora
from fedray.model.anatomy import Anatomy
from fedray.seeds import derive_seed
from fedray.training.data import FILLER, TOKEN_MULTIPLE, Rows, batch_plan, bucket
from fedray.training.forward_only import Directions
from fedray.training.job import Job, Update
from fedray.training.narrow import NarrowBackbones
from fedray.training.observables import KEPT_RANK, SQUARED_LOSS, statistics_of
from fedray.training.optimizer import LocalOptimizer
from fedray.training.ordered import OrderedSteps
from fedray.training.packed import Backbone, Observer, course_of, loss_of_clients
from fedray.training.stack import Stack
from fedray.training.tails import rank_after, tail_masks
from fedray.training.task import Batch, Task
from fedray.training.variates import fill_corrections, own_variate
from fedray.training.waves import plan_waves


class Pool(Protocol):
    """All clients' rows, ready to be batched."""

    @property
    def lengths(self) -> Rows:
        """Tokens of each row of the pool, [rows]."""

    def batch(self, rows: Rows, tokens: int) -> Batch:
        """Rows of the pool padded to ``tokens``; `FILLER` asks for a row of weight 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What a process needs to train any client: the model, the rows, and how a client steps.

    Attributes:
        backbones: by dtype.
        partitions: rows of the pool each client owns.
        tokens_per_wave: padded tokens of one forward pass at most.
        narrow: the narrower models that were last asked for.
    """

    backbones: Mapping[Dtype, Backbone]
    task: Task
    pool: Pool
    partitions: Sequence[Rows]
    optimizer: LocalOptimizer
    max_length: int
    tokens_per_wave: int = 4096
    device: str = "cpu"
    narrow: NarrowBackbones = field(default_factory=NarrowBackbones)

    def backbone_of(self, assignment: Assignment) -> Backbone:
        """The model that a client with this assignment has: of its dtype, as wide, in its bits."""
        return self.narrow.of(self.backbones[assignment.dtype], assignment)

    @property
    def evaluated(self) -> Backbone:
        """Of those by dtype the one that evaluates: in fp32 where the run has it at all."""
        return self.backbones["fp32" if "fp32" in self.backbones else next(iter(self.backbones))]


def train_pack(
    workshop: Workshop, jobs: Sequence[Job], *, recompute: bool = False, observer: Observer | None = None
) -> list[Update]:
    """One update per job, in the order of the jobs.

    Args:
        workshop: of this process.
        jobs: that `fedray.training.packs.form_packs` put together.
        recompute: follow the assignments' checkpointing, as an audit does.
        observer: a byte counter, already entered.
    """
    start = time.perf_counter()
    assignment = jobs[0].assignment
    backbone = workshop.backbone_of(assignment)
    # A device computes its padding and an audit shows that; here only the result is the device's.
    tight = observer is None and not recompute and jobs[0].attention == "memory_efficient"
    # Clients' own weights and prompts are stacked by rows.
    tight = tight and isinstance(assignment.adapter, Lora | HeadOnly)
    optimizer = _optimizer(workshop, jobs[0])
    course = course_of(assignment, jobs[0].attention, recompute=recompute)
    course = replace(course, tight=tight, distillation=optimizer.distillation_in(jobs[0].round))
    stack = stack_of([job.sent for job in jobs], optimizer, workshop.device)
    stack.statistics = statistics_of(jobs[0].observables, backbone.anatomy, assignment, stack.steps)
    follow(stack, jobs, optimizer, workshop.backbones[assignment.dtype].anatomy)
    if observer is not None:
        hold_stack(observer, stack, [job.sent for job in jobs])
    plans = [local_batches(workshop, job, longest_first=observer is not None) for job in jobs]
    rows_each = assignment.batch_size
    lengths = [[_tokens(workshop, batch, rows_each, tight=tight) for batch in plan] for plan in plans]
    sums = _LossSums(len(jobs), workshop.device, squared=SQUARED_LOSS in jobs[0].observables)
    done = [0] * len(jobs)
    for wave in plan_waves(lengths, 1, workshop.tokens_per_wave):
        batch = padded_batch(workshop, [plans[c][done[c]] for c in wave.clients], rows_each)
        if observer is not None:
            observer.hold(list(batch.values()), "activations")
        members = (
            None if len(wave.clients) == len(jobs) else torch.tensor(wave.clients, device=workshop.device)
        )
        loss = loss_of_clients(backbone, course, workshop.task, batch, observer, sums.squares)
        losses = stack.step(loss, members, observer)
        sums.add(wave.clients, losses, [float(len(plans[c][done[c]])) for c in wave.clients])
        for client in wave.clients:
            done[client] += 1
    seen = [sum(len(batch) for batch in plan) for plan in plans]
    seconds = (time.perf_counter() - start) / len(jobs)
    trained = unstack(stack, [job.sent for job in jobs])
    updates = [
        update_of(job, difference(after, job.sent), float(total) / rows_seen, seconds)
        for job, after, total, rows_seen in zip(jobs, trained, sums.losses.tolist(), seen, strict=True)
    ]
    updates = [_keeping(job, update, optimizer) for job, update in zip(jobs, updates, strict=True)]
    seen_of = statistics_in(stack, [job.sent for job in jobs])
    kept = [
        _kept_rank(job, after, workshop.optimizer.tail_gamma)
        for job, after in zip(jobs, trained, strict=True)
    ]
    if stack.directions is not None and stack.directions.told:
        updates = [
            replace(update, told=None if update.delta is None else told.cpu())
            for update, told in zip(updates, stack.directions.told, strict=True)
        ]
    found = zip(updates, seen_of, sums.mean_squares(seen), kept, strict=True)
    return [observed(update, {**blocks, **squares, **rank}) for update, blocks, squares, rank in found]


def follow(stack: Stack, jobs: Sequence[Job], optimizer: LocalOptimizer, whole: Anatomy) -> None:
    """Give a stack what its clients' steps take: variates, forward-only ones' directions, parts of widths."""
    assignment, device = jobs[0].assignment, str(stack.steps.device)
    if stack.corrections:
        fill_corrections(dict(zip(stack.params, stack.corrections, strict=True)), jobs)
    if assignment.perturbations:
        stack.directions = Directions(jobs, [job.sent for job in jobs], optimizer, device)
    if assignment.ordered is not None:
        stack.ordered = OrderedSteps(jobs, whole, device)


def _kept_rank(job: Job, trained: Adapter, gamma: float) -> dict[str, Tensor]:
    if KEPT_RANK not in job.observables:
        return {}
    return {KEPT_RANK: torch.tensor([float(rank_after(job.sent, trained, gamma))])}


class _LossSums:
    """Of each client of a pack the sum of its rows' losses, [C], and if asked that of their squares."""

    def __init__(self, num_clients: int, device: str, *, squared: bool) -> None:
        self.losses = torch.zeros(num_clients, device=device)
        self.squares: list[Tensor] | None = [] if squared else None  # of the step under way, [M]
        self._square_sums = torch.zeros_like(self.losses)

    def add(self, clients: Sequence[int], losses: Tensor, num_rows: Sequence[float]) -> None:
        """A step's means, [M], over so many rows each."""
        at = torch.tensor(clients, device=losses.device)
        counts = torch.tensor(num_rows, device=losses.device)
        self.losses.index_add_(0, at, losses * counts)
        if self.squares is not None:
            # A forward-only client looked several times; all looks are near where it stands.
            self._square_sums.index_add_(0, at, torch.stack(self.squares).mean(0) * counts)
            self.squares.clear()

    def mean_squares(self, num_rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Each client's statistic, over all the rows it saw."""
        if self.squares is None:
            return [{} for _ in num_rows]
        means = self._square_sums.cpu() / torch.tensor(num_rows)
        return [{SQUARED_LOSS: mean.reshape(1)} for mean in means]


def statistics_in(stack: Stack, sent: Sequence[Adapter]) -> list[Mapping[str, Tensor]]:
    """What each client's steps showed of the blocks it trains here, as its job asks."""
    watched = stack.statistics
    return [{} if watched is None else watched.of(client, adapter) for client, adapter in enumerate(sent)]


def observed(update: Update, statistics: Mapping[str, Tensor]) -> Update:
    """The update with its client's statistics; one that failed has none."""
    return update if update.delta is None else replace(update, statistics=statistics)


def _optimizer(workshop: Workshop, job: Job) -> LocalOptimizer:
    # All jobs of a pack have one.
    return workshop.optimizer.scaled(job.learning_rate_scale)


def update_of(job: Job, delta: Adapter | None, loss: float, seconds: float) -> Update:
    """What a job came to; without its delta, and with a message, where it or the loss is no number."""
    fine = delta is not None and math.isfinite(loss) and is_finite(delta)
    return Update(
        client_id=job.client_id,
        dispatch=job.dispatch,
        version=job.version,
        delta=delta if fine else None,
        num_rows=job.num_rows,
        loss=loss,
        wall_seconds=seconds,
        client_state=job.client_state if fine else {},
        message="" if fine else f"the loss of client {job.client_id} is {loss} after {job.num_steps} steps",
    )


def _keeping(job: Job, update: Update, optimizer: LocalOptimizer) -> Update:
    """The update with the control variate that its client goes on with; one that failed keeps what it had."""
    if update.delta is None:
        return update
    own = own_variate(job, update.delta, optimizer)
    return replace(update, client_state={**update.client_state, **own})


def local_batches(workshop: Workshop, job: Job, *, longest_first: bool) -> list[Rows]:
    """The rows of each of a job's local steps; ``longest_first`` for what a device holds at most."""
    own = workshop.partitions[job.client_id]
    if longest_first:
        # What a device holds at most shows in the batch with the longest row.
        size = job.assignment.batch_size
        by_length = own[np.argsort(-workshop.pool.lengths[own], kind="stable")]
        starts = range(0, len(own), size)
        return [by_length[start : start + size] for start in starts][: job.assignment.num_steps(len(own))]
    return rows_of_steps(job, own)


def rows_of_steps(job: Job, own: Rows) -> list[Rows]:
    """Which of its client's rows each of a job's local steps takes."""
    a = job.assignment
    seed = derive_seed(job.seed, "batches", job.round, job.client_id, job.dispatch)
    plan = batch_plan(len(own), a.batch_size, a.num_epochs, a.max_steps, seed)
    return [own[index] for index in plan[: job.num_steps]]


def _tokens(workshop: Workshop, batch: Rows, size: int, *, tight: bool) -> int:
    if not tight:
        return size * _padded(workshop, batch)
    return int(workshop.pool.lengths[batch].sum()) + size - len(batch)  # a filler has one token


def _padded(workshop: Workshop, batch: Rows) -> int:
    longest = int(workshop.pool.lengths[batch].max())
    return bucket(longest, TOKEN_MULTIPLE, workshop.max_length)


def padded_batch(workshop: Workshop, batches: Sequence[Rows], size: int) -> dict[str, Tensor]:
    """The batches of several clients, each filled up to ``size`` rows, padded to the longest row of all."""
    rows = np.concatenate([_filled(batch, size) for batch in batches])
    longest = max(_padded(workshop, batch) for batch in batches)
    return {n: t.to(workshop.device) for n, t in workshop.pool.batch(rows, longest).items()}


def _filled(batch: Rows, size: int) -> Rows:
    return np.concatenate([batch, np.full(size - len(batch), FILLER)])


def stack_of(sent: Sequence[Adapter], optimizer: LocalOptimizer, device: str) -> Stack:
    """Adapters stacked client by client, lower ranks and missing sites padded with zeros."""
    sites = {site: f for adapter in sent for site, f in adapter.factors.items()}
    params: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    tails: dict[str, Tensor] = {}
    for site, example in sites.items():
        own = [adapter.factors.get(site) for adapter in sent]
        a = _stacked_a(own, example, device)
        if example.train_a:
            params[f"{site}.lora_A"] = a
        else:
            frozen[site] = a
        b = torch.zeros(len(sent), example.b.shape[0], a.shape[1], device=device)
        scale = torch.ones(len(sent), 1, 1, device=device)
        for client, f in enumerate(own):
            if f is not None:
                b[client, :, : f.rank], scale[client] = f.b, f.scale
        params[f"{site}.lora_B"], scales[site] = b, scale
        if optimizer.tail_penalty:
            tails[site] = tail_masks(own, optimizer.tail_gamma, a.shape[1], device)
    for name in sent[0].weights:
        params[WEIGHTS + name] = torch.stack([adapter.weights[name] for adapter in sent]).to(device)
    for name in sent[0].head:
        params[f"head.{name}"] = torch.stack([adapter.head[name] for adapter in sent]).to(device)
    stack = Stack(params, frozen, scales, optimizer, torch.zeros(len(sent), device=device))
    stack.tails = tails
    return stack


def _stacked_a(own: Sequence[Factors | None], example: Factors, device: str) -> Tensor:
    if len(own) == 1 and not example.train_a:
        return example.a[None].to(device)  # a client alone holds what it was sent, and no copy of it
    rank = max(f.rank for f in own if f is not None)
    a = torch.zeros(len(own), rank, example.a.shape[1], device=device)
    for client, f in enumerate(own):
        if f is not None:
            a[client, : f.rank] = f.a
    return a


def unstack(stack: Stack, sent: Sequence[Adapter]) -> list[Adapter]:
    """Each client's adapter at its own ranks, on the CPU; on the stack's own memory if that is there.

    A delta is what comes back, so a client needs no copy of what it ended with.
    """
    params = {name: tensor.cpu() for name, tensor in stack.params.items()}
    return [
        Adapter(
            factors={
                site: replace(
                    f,
                    # An A that nobody trains ends as what was sent.
                    a=params[f"{site}.lora_A"][client, : f.rank] if f.train_a else f.a,
                    b=params[f"{site}.lora_B"][client, :, : f.rank],
                )
                for site, f in adapter.factors.items()
            },
            head={name: params[f"head.{name}"][client] for name in adapter.head},
            weights={name: params[WEIGHTS + name][client] for name in adapter.weights},
            places=adapter.places,
        )
        for client, adapter in enumerate(sent)
    ]


def hold_stack(observer: Observer, stack: Stack, sent: Sequence[Adapter]) -> None:
    """Tell a counter what exists before the first step: what was sent, what is trained, the moments."""
    arrived = [t for adapter in sent for t in (*adapter.tensors().values(), *adapter.frozen().values())]
    observer.hold(arrived, "adapters")
    kept = [
        *stack.params.values(),
        *stack.frozen.values(),
        *stack.scales.values(),
        *stack.tails.values(),
        stack.steps,
        *(stack.directions.told if stack.directions is not None else ()),
        *(stack.ordered.tensors() if stack.ordered is not None else ()),
    ]
    observer.hold(kept, "adapters")
    moments = [m for kind in stack.moments for m in kind]
    observer.hold(moments + stack.anchors + stack.corrections, "optimizer")
    if stack.statistics is not None:
        observer.hold(list(stack.statistics.sums.values()), "optimizer")
