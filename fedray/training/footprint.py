"""Footprints: what a step of an assignment costs, from traces of the real one.

Two passes of each side's step, one for bytes and one for operations, over as few blocks as tell all.
"""

import inspect
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch

from fedray.adapter import Adapter
from fedray.assignment import Assignment, Lora
from fedray.codec_names import num_seeds
from fedray.cost import Crossing, Footprint, PeakTerms, Roofline, ServerShare, WorkShape
from fedray.model.counter import ByteCounter, OpCounter
from fedray.model.load import TORCH_DTYPES
from fedray.model.meta_memory import MetaMemory
from fedray.model.trace import StepCounts, counts_at_depth
from fedray.model.wire import wire_bytes
from fedray.training.crossing import crossing_of
from fedray.training.held import held_bytes
from fedray.training.job import message
from fedray.training.kept_counts import KeptCounts
from fedray.training.link import layout_of, owed_like
from fedray.training.meta_steps import MetaSteps, TraceSubject
from fedray.training.observables import values_on_meta
from fedray.training.shares import client_share, learnt_above, server_share
from fedray.training.short_steps import Side, kinds_of, shortened, side_of
from fedray.training.variates import on_the_wire

__all__ = ["FootprintTracer", "TraceSubject", "held_bytes"]


class FootprintTracer:
    """Footprints of one subject, each traced once, kept in memory and on disk by content."""

    def __init__(self, subject: TraceSubject, cache_dir: Path | None) -> None:
        """Args: cache_dir: where JSON files of traced steps lie; None keeps nothing."""
        self._subject = subject
        self._steps = MetaSteps(subject)
        self._memory = MetaMemory()
        self._on_disk = KeptCounts(cache_dir, _facts_of(subject))
        self._step_counts = cache(self._count)
        self._footprint = cache(self._build)

    def __call__(self, assignment: Assignment, shape: WorkShape) -> Footprint:
        """What one step of the assignment at this shape costs.

        Raises:
            TrainingError: for a cut below which, or above which, the task's loss cannot be computed.
            ConfigError: for a codec that makes none of the client's tensors shorter.
        """
        found = self._footprint(_shape_key(assignment), shape)
        width = assignment.width
        if width is None or width == width.at_start():
            return found
        return replace(
            found, held_bytes=held_bytes(self._subject.anatomy_of(_shape_key(assignment)), assignment)
        )

    def _build(self, assignment: Assignment, shape: WorkShape) -> Footprint:
        counts = self._counts(side_of(assignment), assignment, shape)
        anatomy = self._subject.anatomy_of(assignment)
        adapter = self._steps.adapter(assignment)
        own = client_share(anatomy, assignment, adapter)
        statistics = values_on_meta(self._subject.observables, anatomy.num_blocks, split=assignment.split)
        ops = [(flops, moved, times) for (flops, moved), times in counts.ops.items()]
        crossed = own.tensors()
        trained = crossed | learnt_above(anatomy, assignment, adapter).tensors()
        peak = dict(counts.peak())
        # What it owes of earlier updates lies beside the optimizer through every step.
        peak["optimizer"] += sum(t.numel() * t.element_size() for t in owed_like(crossed, assignment))
        variate = on_the_wire(crossed) if self._subject.optimizer.control_variates else {}
        return Footprint(
            peak_bytes=sum(peak.values()),
            terms=PeakTerms(**peak),
            forward_flops=counts.forward_flops,
            backward_flops=counts.turn_flops + counts.backward_flops,
            turn_flops=counts.turn_flops,
            moved_bytes=sum(moved * times for _, moved, times in ops),
            roofline=Roofline([f * n for f, _, n in ops], [m * n for _, m, n in ops]),
            up_bytes=wire_bytes(message(layout_of(crossed, assignment, "up"), statistics)),
            down_bytes=wire_bytes({**layout_of(crossed, assignment, "down"), **variate}),
            held_bytes=held_bytes(anatomy, assignment),
            trained_params=sum(tensor.numel() for tensor in trained.values()),
            crossing=self._crossing(assignment, adapter) if assignment.split else None,
            server=self._server(assignment, adapter, shape) if assignment.split else None,
        )

    def _crossing(self, assignment: Assignment, adapter: Adapter) -> Crossing:
        subject = self._subject
        anatomy = subject.anatomies[assignment.dtype]
        clips = subject.clips_as_one and subject.optimizer.max_grad_norm is not None
        batch = subject.meta_batch(1, 2)
        return crossing_of(
            assignment,
            width=anatomy.model.config.hidden_size,
            dtype=TORCH_DTYPES[assignment.dtype],
            target_dims=[batch[name].dim() for name in self._steps.targets],
            client_tells=clips
            and not (assignment.local_loss or assignment.is_black_box)
            and bool(client_share(anatomy, assignment, adapter).tensors()),
            server_tells=clips and bool(learnt_above(anatomy, assignment, adapter).tensors()),
        )

    def _server(self, assignment: Assignment, adapter: Adapter, shape: WorkShape) -> ServerShare:
        anatomy, optimizer = self._subject.anatomies[assignment.dtype], self._subject.optimizer
        counts = self._counts("server", assignment, replace(shape, attention=self._subject.server_attention))
        blocks = assignment.server_blocks(anatomy.num_blocks)
        share = server_share(anatomy, assignment, adapter)
        # What was sent, what is trained of it, its gradients and its moments; of what is frozen one. What is
        # still lies there as it was sent and as it is run.
        copies = 2 if assignment.is_black_box else 3 + len(optimizer.moments([]))
        trained, frozen = (sum(map(_bytes, t.values())) for t in (share.tensors(), share.frozen()))
        return ServerShare(
            flops=counts.forward_flops + counts.backward_flops,
            activation_bytes=max(t["activations"] + t["logits"] for t in counts.phases.values()),
            adapter_bytes=copies * trained + frozen,
            first_block=blocks.start,
            end_block=blocks.stop,
            comes_down=not assignment.is_black_box,
        )

    def _counts(self, side: Side, assignment: Assignment, shape: WorkShape) -> StepCounts:
        # What its messages are coded with changes no step.
        shared = num_seeds(assignment.up_codec) is not None  # of which a client keeps a sum each
        up = assignment.up_codec if shared else "none"
        assignment = replace(assignment, up_codec=up, down_codec="none")
        key = f"{side}{assignment.to_json()}{shape}"
        counts = self._on_disk.find(key)
        if counts is None:
            counts = self._traced(side, assignment, shape)
            self._on_disk.keep(key, counts)
        return counts

    def _traced(self, side: Side, assignment: Assignment, shape: WorkShape) -> StepCounts:
        num_blocks = self._subject.anatomies[assignment.dtype].num_blocks

        def step(positions: tuple[int, ...]) -> StepCounts:
            return self._step_counts(side, shortened(side, assignment, num_blocks, positions), shape)

        return counts_at_depth(kinds_of(side, assignment, num_blocks), step)

    def _count(self, side: Side, assignment: Assignment, shape: WorkShape) -> StepCounts:
        counter, ops = ByteCounter(), OpCounter()
        # An operation counter beside the byte counter would inflate the peak.
        with self._memory:
            self._steps.run(side, assignment, shape, counter)
            self._steps.run(side, assignment, shape, ops)
        return StepCounts(
            phases=counter.phases,
            ops=ops.ops,
            forward_flops=ops.flops["forward"],
            backward_flops=ops.flops["backward"],
            turn_flops=ops.flops["turn"],
        )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shape_key(assignment: Assignment) -> Assignment:
    """The assignment without what changes no step: how many steps, the adapter's scale, where a part lies."""
    adapter = assignment.adapter
    plain = replace(adapter, scale=1.0) if isinstance(adapter, Lora) else adapter
    width = None if assignment.width is None else assignment.width.at_start()
    return replace(assignment, adapter=plain, num_epochs=1, max_steps=None, width=width)


def _facts_of(subject: TraceSubject) -> list[object]:
    """What the counts of all steps of a subject follow from, beside the code."""
    return [
        {dtype: a.model.config.to_json_string() for dtype, a in subject.anatomies.items()},
        inspect.getsource(sys.modules[type(subject.task).__module__]),
        {name: str(tensor.dtype) for name, tensor in subject.meta_batch(1, 1).items()},
        asdict(replace(subject.optimizer, learning_rate=1.0, head_learning_rate=None)),
        subject.num_labels,
        subject.observables,
        [subject.clips_as_one, subject.server_attention, subject.server_recompute],
    ]
