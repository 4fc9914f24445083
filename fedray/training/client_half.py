"""The client's side of a round under a cut, for the clients of a pack: messages up, the tail, and back down.

The trainer of whole models (`train_pack`) takes a step in one go; under a cut it has up to four parts with
a message between two. A frozen bottom has no backward, and sends each row in its first epoch only. A
black-box client goes up at each look of a step, hears a loss, and steps after the last.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedray.adapter import Adapter, auxiliary, difference, is_finite
from fedray.mechanism import CutNoise
from fedray.model.codecs import Coded, encode
from fedray.model.sites import swapped
from fedray.seeds import derive_seed
from fedray.training.base_delta import BaseDelta, moved_blocks
from fedray.training.boundary import (
    Message,
    Messages,
    PackMessages,
    in_32_bits,
    lengths_of,
    numbers_of,
    protected,
    real_tokens,
    rows_of_states,
)
from fedray.training.data import Rows
from fedray.training.forward_only import Directions, Looking
from fedray.training.half_step import HalfCourse, HalfStep
from fedray.training.job import Job
from fedray.training.link import SentUp, sent_up
from fedray.training.observables import statistics_of
from fedray.training.own_side import OwnSide, without_own_side
from fedray.training.packed import Observer
from fedray.training.shares import client_share
from fedray.training.task import Batch
from fedray.training.train import (
    Workshop,
    hold_stack,
    local_batches,
    padded_batch,
    stack_of,
    statistics_in,
    unstack,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BelowTheCut:
    """What the clients of a pack have to show for a round.

    Attributes:
        sent: the client's share of each update as it crosses, nothing where that stays below, and what the
            client keeps; None where it is no number.
        loss_sums: over all rows of all steps, of the losses found here: under a tail, or told to a black box.
        rows: trained on by each client.
        wall_seconds: spent here, on all of them.
        statistics: of the blocks that each client trains itself, where a policy asks for any.
    """

    sent: tuple[SentUp | None, ...]
    loss_sums: tuple[float, ...]
    rows: tuple[int, ...]
    wall_seconds: float
    statistics: tuple[Mapping[str, Tensor], ...]


class ClientHalf:
    """The client's side of every step of a pack's round."""

    def __init__(
        self,
        workshop: Workshop,
        jobs: Sequence[Job],
        targets: Sequence[str],
        *,
        clips_as_one: bool,
        recompute: bool = False,
        observer: Observer | None = None,
    ) -> None:
        """Open a round.

        Args:
            workshop: of this process.
            jobs: that `form_packs` put together, all with the same cut.
            targets: the features that a loss on the server reads; none under a tail.
            clips_as_one: a gradient's norm is that of both sides; else each side clips its own part.
            recompute: follow the assignments' checkpointing, as an audit does.
            observer: a byte counter, already entered.
        """
        self._workshop, self._jobs, self._observer = workshop, jobs, observer
        self._assignment = a = jobs[0].assignment
        self._targets = () if a.tail else tuple(targets)
        self._backbone = workshop.backbone_of(a)
        anatomy, attention = self._backbone.anatomy, jobs[0].attention
        # A device computes its padding and an audit shows that; here only the result is the device's.
        tight = observer is None and not recompute and attention == "memory_efficient"
        self._course = HalfCourse.of(a, anatomy.num_blocks, attention, recompute=recompute, tight=tight)
        own = [_own_side(job, client_share(anatomy, job.assignment, job.sent)) for job in jobs]
        self._sent = [side.begun for side in own]
        optimizer = workshop.optimizer.scaled(jobs[0].learning_rate_scale)
        self._stack = stack_of([side.now for side in own], optimizer, workshop.device)
        self._stack.statistics = statistics_of(jobs[0].observables, anatomy, a, self._stack.steps)
        if a.is_black_box:
            self._stack.directions = Directions(jobs, self._sent, optimizer, workshop.device)
        if observer is not None:
            hold_stack(observer, self._stack, self._sent)
        self._plans = [local_batches(workshop, job, longest_first=observer is not None) for job in jobs]
        # A side without a part of its own has nothing to tell.
        clips = clips_as_one and optimizer.max_grad_norm is not None
        self._tells_norm = clips and bool(self._stack.params) and not (a.local_loss or a.is_black_box)
        self._losses = [0.0] * len(jobs)
        self._kept: set[tuple[int, int]] = set()  # (member, row) whose hidden states the server has
        self._members: list[int] = []
        self._number = self._ride = 0  # the step under way; it goes up once, or at each look
        self._step: HalfStep | None = None
        self._looking: Looking | None = None  # of a black box
        self._batch: Batch = {}
        self._lengths = torch.zeros(0)
        self._seconds = 0.0

    def ascend(self, number: int) -> Messages:
        """Ride ``number``, from 0, up to the cut: a message of every client that has such a step, or look."""
        start = time.perf_counter()
        self._ride = number
        self._number, look = divmod(number, self._assignment.rides_per_step)
        if not look:
            self._begin()
        if not self._members:
            return {}
        own = [self._plans[c][self._number] for c in self._members]
        kept = [self._are_kept(c, rows) for c, rows in zip(self._members, own, strict=True)]
        place = None if self._looking is None else self._looking.place()
        hidden = None if all(kept) else self._half().up(place)
        sent = {}
        for at, (rows, known) in enumerate(zip(own, kept, strict=True)):
            sent[self._client(at)] = self._message_up(at, rows, None if known else hidden)
        self._seconds += time.perf_counter() - start
        return sent

    def _begin(self) -> None:
        """A step of those who have so many."""
        self._members = [c for c, plan in enumerate(self._plans) if len(plan) > self._number]
        if not self._members:
            return
        own = [self._plans[c][self._number] for c in self._members]
        self._batch = padded_batch(self._workshop, own, self._assignment.batch_size)
        if self._observer is not None:
            self._observer.hold(list(self._batch.values()), "activations")
        self._lengths = lengths_of(self._batch["attention_mask"])
        everybody = len(self._members) == len(self._jobs)
        index = None if everybody else torch.tensor(self._members, device=self._workshop.device)
        self._step = HalfStep(self._backbone, self._course, self._stack, self._batch, index, self._observer)
        directions = self._stack.directions
        if directions is not None:
            self._looking = Looking(directions, self._step.leaves, self._members, self._observer)

    def turn(self, exits: Messages) -> Messages:
        """The tail: from the server's hidden states to the loss, and their gradient back to the server."""
        start = time.perf_counter()
        losses, gradient = self._half().turn(self._arrived(exits), self._workshop.task)
        self._add_losses(losses)
        # With nothing below the cut to train the client's gradient is whole now; else it is told later.
        whole = self._assignment.frozen_bottom and self._tells_norm
        squares = numbers_of(self._half().squares()) if whole else None
        back = {}
        for place in range(len(self._members)):
            at = self._rows_at(place)
            back[self._client(place)] = Message(
                states=self._coded(gradient[at], place, "gradient up"),
                square=None if squares is None else squares[place],
            )
        self._seconds += time.perf_counter() - start
        return back

    def descend(self, down: Messages) -> Mapping[int, float]:
        """Back down from the cut, and a step; each client's squared norm, where both sides clip as one."""
        start = time.perf_counter()
        half = self._half()
        told: dict[int, float] = {}
        if self._looking is not None and not self._heard(self._looking, down):
            self._seconds += time.perf_counter() - start
            return told
        if self._assignment.gradient_comes_down:
            half.down(self._arrived(down))
        if self._assignment.local_loss:
            half.learn_at_cut(self._workshop.task, auxiliary(self._assignment.cut))
        if self._stack.params:
            told_before = self._assignment.frozen_bottom
            squares = half.squares() if self._tells_norm and not told_before else None
            elsewhere = [down[self._client(p)].square for p in range(len(self._members))] if down else []
            known = [square for square in elsewhere if square is not None]
            half.update(torch.tensor(known, device=self._workshop.device) if known else None)
            if squares is not None:
                told = {self._client(place): square for place, square in enumerate(numbers_of(squares))}
        self._step = None
        self._seconds += time.perf_counter() - start
        return told

    def _heard(self, looking: Looking, down: Messages) -> bool:
        """A look's losses; whether it was the step's last, so that its gradient is known."""
        losses = [down[self._client(place)].loss for place in range(len(self._members))]
        looking.hear(torch.tensor(losses, device=self._workshop.device))
        if looking.done:
            self._half().learn(looking.grads)
            self._add_losses(looking.mean)
            self._looking = None
        return looking.done

    def _add_losses(self, losses: Tensor) -> None:
        """Of the step, found here, [M]."""
        for member, loss in zip(self._members, numbers_of(losses), strict=True):
            self._losses[member] += loss * len(self._plans[member][self._number])

    def finish(self) -> BelowTheCut:
        """The end of the round."""
        pairs = zip(self._sent, unstack(self._stack, self._sent), strict=True)
        ends = [OwnSide(begun=begun, now=now) for begun, now in pairs]
        return BelowTheCut(
            sent=tuple(_sent_up(job, end) for job, end in zip(self._jobs, ends, strict=True)),
            loss_sums=tuple(self._losses),
            rows=tuple(sum(len(batch) for batch in plan) for plan in self._plans),
            wall_seconds=self._seconds,
            statistics=tuple(statistics_in(self._stack, self._sent)),
        )

    def _are_kept(self, member: int, rows: Rows) -> bool:
        if not self._assignment.frozen_bottom:
            return False
        keys = {(member, row) for row in rows.tolist()}
        known = keys <= self._kept
        self._kept |= keys
        return known

    def _message_up(self, place: int, rows: Rows, hidden: Tensor | None) -> Message:
        ids = tuple(rows.tolist())
        if hidden is None:
            return Message(rows=ids)
        at = self._rows_at(place)
        lengths = self._lengths[at]
        read = {name: self._batch[name][at] for name in self._targets}
        return Message(
            states=self._coded(hidden[at], place, "up", self._jobs[self._members[place]].cut_noise),
            lengths=lengths,
            token_targets={n: in_32_bits(real_tokens(t, lengths)) for n, t in read.items() if t.dim() > 1},
            row_targets={n: in_32_bits(t) for n, t in read.items() if t.dim() == 1},
            rows=ids,
        )

    def _arrived(self, messages: Messages) -> Tensor:
        """What came for each member, as rows [N, T, D] with zeros at padding."""
        shape = self._assignment.batch_size, self._batch["attention_mask"].shape[1]
        parts = []
        for place in range(len(self._members)):
            states = messages[self._client(place)].states
            assert states is not None
            parts.append(rows_of_states(states, self._lengths[self._rows_at(place)], shape))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _coded(self, padded: Tensor, place: int, way: str, noise: CutNoise | None = None) -> Coded:
        job = self._jobs[self._members[place]]
        of_this = job.round, job.client_id, job.dispatch
        # Both looks along a direction are rounded alike, so that rounding is as little of their difference as
        # can be. Noise is each one's own: what is twice under the same noise is hardly under noise.
        rounded = self._ride if self._looking is None else self._ride // 2
        seed, of_noise = (derive_seed(job.seed, f"codec {way}", *of_this, at) for at in (rounded, self._ride))
        tokens = real_tokens(padded.detach(), self._lengths[self._rows_at(place)])
        return encode(protected(tokens, noise, of_noise), self._assignment.cut_codec, seed)

    def _client(self, place: int) -> int:
        return self._jobs[self._members[place]].client_id

    def _rows_at(self, place: int) -> slice:
        """A member's real rows in the batch."""
        start = place * self._assignment.batch_size
        return slice(start, start + len(self._plans[self._members[place]][self._number]))

    def _half(self) -> HalfStep:
        assert self._step is not None, "ascend comes first"
        return self._step


def _own_side(job: Job, share: Adapter) -> OwnSide:
    """Where the client's steps begin: at what it kept, or at the share that it was sent."""
    return OwnSide.of(job.client_state) or OwnSide(begun=share, now=share)


def _sent_up(job: Job, own: OwnSide) -> SentUp | None:
    if not is_finite(own.now):
        return None
    sent = sent_up(job, Adapter() if job.keeps_own_side else difference(own.now, own.begun))
    kept = own.state() if job.keeps_own_side else {}
    return replace(sent, client_state={**without_own_side(sent.client_state), **kept})


class PackHalves:
    """The client halves of several packs in this process."""

    def __init__(
        self,
        workshop: Workshop,
        packs: Mapping[int, Sequence[Job]],
        targets: Sequence[str],
        *,
        clips_as_one: bool,
        base_delta: BaseDelta | None = None,
    ) -> None:
        """Open a round.

        Args:
            workshop: of this process.
            packs: by their place in the round.
            targets: as in `ClientHalf`, like ``clips_as_one``.
            clips_as_one: see there.
            base_delta: what the rule keeps beside the frozen weights.
        """
        self._halves = {
            place: ClientHalf(workshop, jobs, targets, clips_as_one=clips_as_one)
            for place, jobs in packs.items()
        }
        self._backbones = {p: workshop.backbone_of(jobs[0].assignment) for p, jobs in packs.items()}
        self._moved: dict[int, Mapping[str, nn.Parameter]] = {}
        for place, jobs in packs.items():
            backbone, assignment = self._backbones[place], jobs[0].assignment
            blocks = assignment.client_blocks(backbone.anatomy.num_blocks)
            self._moved[place] = moved_blocks(backbone, blocks, base_delta or {}, workshop.device)

    def ascend(self, number: int) -> dict[int, Messages]:
        """`ClientHalf.ascend` of every pack that has such a step."""
        sent = {}
        for place in self._halves:
            with self._half(place) as half:
                sent[place] = half.ascend(number)
        return {place: messages for place, messages in sent.items() if messages}

    def turn(self, exits: PackMessages) -> dict[int, Messages]:
        """`ClientHalf.turn` of the packs named."""
        sent = {}
        for place, messages in exits.items():
            with self._half(place) as half:
                sent[place] = half.turn(messages)
        return sent

    def descend(self, down: PackMessages) -> dict[int, float]:
        """`ClientHalf.descend` of the packs named."""
        squares: dict[int, float] = {}
        for place, messages in down.items():
            with self._half(place) as half:
                squares |= half.descend(messages)
        return squares

    def finish(self) -> dict[int, BelowTheCut]:
        """`ClientHalf.finish` of every pack."""
        return {place: half.finish() for place, half in self._halves.items()}

    @contextmanager
    def _half(self, place: int) -> Iterator[ClientHalf]:
        """On the weights that its clients run."""
        with swapped(self._backbones[place].sites, self._moved[place]):
            yield self._halves[place]
