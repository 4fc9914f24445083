"""The real step of a side, run on torch's meta device under a counter.

Nothing is computed and no weight is in memory, so a client of any size is traced on any machine. The
step is the packed one with a pack of one, or under a cut each side's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, assert_never

import numpy as np
import torch

from fedray.adapter import Adapter
from fedray.assignment import Assignment, Attention, Dtype, Lora
from fedray.cost import WorkShape
from fedray.model.anatomy import Anatomy
from fedray.model.codecs import Coded, encode
from fedray.model.counter import ByteCounter, OpCounter
from fedray.model.load import TORCH_DTYPES
from fedray.observable import Observable
from fedray.training.boundary import read_by_loss
from fedray.training.client_half import ClientHalf
from fedray.training.data import Rows
from fedray.training.held import weights
from fedray.training.job import Job
from fedray.training.lone_client import LoneClient
from fedray.training.narrow import NarrowBackbones
from fedray.training.observables import SQUARED_LOSS, statistics_of
from fedray.training.optimizer import STILL, LocalOptimizer
from fedray.training.packed import Backbone, course_of, loss_of_clients
from fedray.training.served_step import Serving, serve
from fedray.training.shapes import empty_adapter
from fedray.training.shares import server_share
from fedray.training.short_steps import Side
from fedray.training.task import Batch, Task
from fedray.training.train import Workshop, follow, hold_stack, stack_of

Counter = ByteCounter | OpCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSubject:
    """What is traced.

    Attributes:
        anatomies: on the meta device, by dtype.
        num_labels: of the classifier's head, 0 for the model's own.
        meta_batch: rows and tokens to a batch of the task on the meta device, ``weight`` in it.
        observables: statistics that every client computes at each step and sends up.
        clips_as_one: under a cut, whether a gradient's norm is that of both sides.
        server_attention: the kernel of the blocks above a cut.
        server_recompute: their activation checkpointing.
        narrow: the narrower models that were last asked for.
    """

    anatomies: Mapping[Dtype, Anatomy]
    task: Task
    num_labels: int
    optimizer: LocalOptimizer
    meta_batch: Callable[[int, int], Batch]
    observables: tuple[Observable, ...] = ()
    clips_as_one: bool = True
    server_attention: Attention = "memory_efficient"
    server_recompute: bool = False
    narrow: NarrowBackbones = field(default_factory=lambda: NarrowBackbones(64))

    def backbone_of(self, assignment: Assignment) -> Backbone:
        """The model that a client with this assignment has."""
        return self.narrow.of(self.servers_backbone(assignment), assignment)

    def servers_backbone(self, assignment: Assignment) -> Backbone:
        """The model that a server has for it: the whole, in all bits."""
        targets = assignment.adapter.targets if isinstance(assignment.adapter, Lora) else ()
        return Backbone.of(self.anatomies[assignment.dtype], [targets])

    def anatomy_of(self, assignment: Assignment) -> Anatomy:
        """The same without sites."""
        return self.backbone_of(assignment).anatomy


class MetaSteps:
    """The steps of a subject's assignments on each side."""

    def __init__(self, subject: TraceSubject) -> None:
        """Args: subject: what is traced."""
        self._subject = subject

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The features that a loss above a cut reads. Raises TrainingError for one that cannot be there."""
        subject = self._subject
        config = next(iter(subject.anatomies.values())).model.config
        return read_by_loss(subject.task, subject.meta_batch(1, 2), subject.num_labels or config.vocab_size)

    def adapter(self, assignment: Assignment) -> Adapter:
        """What is trained, both sides of a cut together."""
        anatomy = self._subject.anatomy_of(assignment)
        return empty_adapter(anatomy, assignment, self._subject.num_labels, "meta")

    def run(self, side: Side, assignment: Assignment, shape: WorkShape, counter: Counter) -> None:
        """One step of a side under a counter, not entered yet.

        An operation counter finds those of a client's tail under "turn".
        """
        match side:
            case "whole":
                self._run_whole(assignment, shape, counter)
            case "client":
                self._run_client(assignment, shape, counter)
            case "server":
                self._run_server(assignment, shape, counter)
            case _:
                assert_never(side)

    def _run_whole(self, assignment: Assignment, shape: WorkShape, counter: Counter) -> None:
        subject, backbone = self._subject, self._subject.backbone_of(assignment)
        anatomy = backbone.anatomy
        observer = counter if isinstance(counter, ByteCounter) else None
        _, job = self._alone(assignment, shape)
        stack = stack_of([job.sent], subject.optimizer, "meta")
        stack.statistics = statistics_of(subject.observables, anatomy, assignment, stack.steps)
        follow(stack, [job], subject.optimizer, subject.anatomies[assignment.dtype])
        batch = subject.meta_batch(shape.rows, shape.tokens)
        if observer is not None:
            observer.hold(weights(anatomy, assignment), "weights")
            hold_stack(observer, stack, [job.sent])
            observer.hold(list(batch.values()), "activations")
        course = course_of(assignment, shape.attention, recompute=True)
        course = replace(course, distillation=subject.optimizer.exit_distillation)
        squares: list[torch.Tensor] | None = [] if SQUARED_LOSS in subject.observables else None
        loss = loss_of_clients(backbone, course, subject.task, batch, observer, squares)

        def loss_then_backward(factors: Any, head: Any) -> torch.Tensor:
            losses = loss(factors, head)
            if isinstance(counter, OpCounter) and not assignment.perturbations:
                counter.direction = "backward"
            return losses

        with counter:
            stack.step(loss_then_backward, observer=observer)

    def _run_client(self, assignment: Assignment, shape: WorkShape, counter: Counter) -> None:
        subject, backbone = self._subject, self._subject.backbone_of(assignment)
        observer = counter if isinstance(counter, ByteCounter) else None
        if observer is not None:
            observer.hold(weights(backbone.anatomy, assignment), "weights")
        workshop, job = self._alone(assignment, shape)
        half = ClientHalf(
            workshop,
            [job],
            self.targets,
            clips_as_one=subject.clips_as_one,
            recompute=True,
            observer=observer,
        )
        client = LoneClient(half, job, counter, observer)
        for ride in range(assignment.rides_per_step):
            client.up(ride)
            if isinstance(counter, OpCounter) and not assignment.is_black_box:
                counter.direction = "turn"
            client.turn()
            if isinstance(counter, OpCounter) and not assignment.is_black_box:
                counter.direction = "backward"
            client.back()

    def _alone(self, assignment: Assignment, shape: WorkShape) -> tuple[Workshop, Job]:
        """A client on the meta device whose rows are one batch, without padding."""
        subject = self._subject
        workshop = Workshop(
            backbones={assignment.dtype: subject.servers_backbone(assignment)},
            narrow=subject.narrow,
            task=subject.task,
            pool=_MetaRows(lengths=np.full(shape.rows, shape.tokens), meta_batch=subject.meta_batch),
            partitions=(np.arange(shape.rows),),
            optimizer=subject.optimizer,
            max_length=shape.tokens,
            device="meta",
        )
        job = Job(
            round=0,
            client_id=0,
            dispatch=0,
            version=0,
            seed=0,
            assignment=replace(assignment, batch_size=shape.rows),
            attention=shape.attention,
            sent=self.adapter(assignment),
            num_rows=shape.rows,
            num_steps=1,
            tokens=shape.tokens,
            observables=subject.observables,
        )
        return workshop, job

    def _run_server(self, assignment: Assignment, shape: WorkShape, counter: Counter) -> None:
        subject, backbone = self._subject, self._subject.servers_backbone(assignment)
        anatomy = backbone.anatomy
        sent = server_share(anatomy, assignment, self.adapter(assignment))
        stack = stack_of([sent], STILL if assignment.is_black_box else subject.optimizer, "meta")
        whole = subject.meta_batch(shape.rows, shape.tokens)
        names = "attention_mask", "weight", *(() if assignment.tail else self.targets)
        batch = {name: whole[name] for name in names}
        came = self._sent_up(assignment, shape)
        observer = counter if isinstance(counter, ByteCounter) else None
        if observer is not None:
            observer.hold([*anatomy.model.parameters(), *anatomy.model.buffers()], "weights")
            hold_stack(observer, stack, [sent])
            observer.hold([*batch.values(), *came.tensors.values()], "activations")
        serving = Serving(
            backbone=backbone,
            task=subject.task,
            attention=shape.attention,
            recompute=subject.server_recompute,
        )
        with counter:
            serve(serving, assignment, stack, batch, came, observer)

    def _sent_up(self, assignment: Assignment, shape: WorkShape) -> Coded:
        """Hidden states of a batch without padding."""
        width = self._subject.anatomies[assignment.dtype].model.config.hidden_size
        size, dtype = (shape.rows * shape.tokens, width), TORCH_DTYPES[assignment.dtype]
        return encode(torch.empty(size, dtype=dtype, device="meta"), assignment.cut_codec, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetaRows:
    """A `fedray.training.train.Pool` without rows."""

    lengths: Rows
    meta_batch: Callable[[int, int], Batch]

    def batch(self, rows: Rows, tokens: int) -> Batch:
        return self.meta_batch(len(rows), tokens)
