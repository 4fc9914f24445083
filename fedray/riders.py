"""A client's local work under a cut: steps in turns between its device and a server, and what they send.

The steps of a client are alike: each takes what one takes on average, as without a cut, and sends an even
share of all that crosses. The sums are those of the client's own rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.assignment import Assignment
from fedray.cost import Device, Floats, Footprint, Ints, StepCost, steps_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Riders:
    """Clients under a cut; arrays are [clients]. A client without one has no steps.

    A step is *fresh* if its hidden states cross; where they are kept, only the first epoch's are. Under a
    tail it turns midway: down comes what the tail reads, and up goes the gradient of that. A black-box
    client's looks are steps here, each an even part of what is computed in a local step.

    Attributes:
        num_steps: local steps, or looks; a sweep serves one.
        num_fresh: the first of them, which are fresh.
        forward_seconds: of the client's own arithmetic in a step before it sends; ``turn_seconds`` in its
            tail; ``backward_seconds`` after that. A step that is not fresh takes nothing before its tail, and
            without one nothing at all.
        fresh_up_bytes: up, of all fresh steps; ``later_up_bytes`` of the others.
        fresh_turn_up_bytes: of the fresh ones' those that a tail sends; of the others' all are.
        down_bytes: down, of all steps; ``turn_down_bytes`` those of them that a tail reads.
        up_messages: of a fresh step, one more than of another; ``down_messages`` of any step.
        server_flops: of one step on the server.
        first_block: the cut.
        blind: 1 for a black-box client, whose answer comes from the top of a sweep; 0 for others.
    """

    num_steps: Ints
    num_fresh: Ints
    forward_seconds: Floats
    turn_seconds: Floats
    backward_seconds: Floats
    fresh_up_bytes: Ints
    fresh_turn_up_bytes: Ints
    later_up_bytes: Ints
    down_bytes: Ints
    turn_down_bytes: Ints
    up_messages: Ints
    down_messages: Ints
    server_flops: Ints
    first_block: Ints
    blind: Ints

    def __len__(self) -> int:
        """How many clients."""
        return len(self.num_steps)

    def take(self, index: Ints) -> "Riders":
        """The same for the clients at ``index``."""
        return Riders(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def only(self, stays: NDArray[np.bool_]) -> "Riders":
        """The same, without steps for the clients that do not stay."""
        staying = np.flatnonzero(stays)
        return Riders.placed(len(self), [(staying, self.take(staying))])

    @staticmethod
    def of(
        cost: StepCost, assignment: Assignment, device: Device, num_rows: Ints, num_tokens: Ints
    ) -> "Riders":
        """One assignment with a cut on many clients.

        Args:
            cost: of one step; its footprints have a crossing and a server's share.
            assignment: how many steps, of how many rows.
            device: the clients' declared rates.
            num_rows: of their own, [clients].
            num_tokens: real tokens of all these rows, [clients]. Whole epochs send exactly these; where
                ``max_steps`` ends within an epoch, its rows count as of mean length.
        """
        crossing, share = cost.longest.crossing, cost.longest.server
        assert crossing is not None, "a rider has a crossing"
        assert share is not None, "a rider has a share of the server"
        per_epoch, rides = -(-num_rows // assignment.batch_size), assignment.rides_per_step
        steps = steps_of(assignment, per_epoch)
        fresh = np.minimum(steps, per_epoch) if crossing.kept else steps
        rows, tokens = _seen(steps, per_epoch, assignment.batch_size, num_rows, num_tokens)
        fresh_rows, fresh_tokens = _seen(fresh, per_epoch, assignment.batch_size, num_rows, num_tokens)
        again = crossing.tail_up_bytes_per_token
        forward, turn, backward = cost.mean(lambda one: _step_seconds(one, assignment, device))
        server_flops = cost.mean(lambda one: np.full(len(num_rows), _server_flops(one), np.int64))
        # With nothing below the cut to train the gradient's norm goes up with the tail's gradient.
        norm = crossing.up_bytes_per_step if again and crossing.kept else 0
        count = np.ones(len(num_rows), np.int64)
        return Riders(
            num_steps=rides * steps,
            num_fresh=rides * fresh,
            forward_seconds=forward,
            turn_seconds=turn,
            backward_seconds=backward,
            fresh_up_bytes=rides
            * (
                crossing.up_bytes_per_token * fresh_tokens
                + crossing.up_bytes_per_row * fresh_rows
                + crossing.up_bytes_per_step * fresh
            ),
            fresh_turn_up_bytes=again * fresh_tokens + norm * fresh,
            later_up_bytes=again * (tokens - fresh_tokens) + crossing.up_bytes_per_step * (steps - fresh),
            down_bytes=rides
            * (
                crossing.down_bytes_per_token * tokens
                + crossing.down_bytes_per_row * rows
                + crossing.down_bytes_per_step * steps
            ),
            turn_down_bytes=again * tokens,
            up_messages=count * -(-crossing.num_messages // 2),
            down_messages=count * (crossing.num_messages // 2),
            server_flops=server_flops.round().astype(np.int64),
            first_block=count * share.first_block,
            blind=count * assignment.is_black_box,
        )

    @staticmethod
    def placed(count: int, parts: Sequence[tuple[Ints, "Riders"]]) -> "Riders":
        """Of ``count`` clients those at each part's positions; the others have no steps."""
        arrays: dict[str, NDArray[Any]] = {}
        for field in fields(Riders):
            seconds = field.name.endswith("_seconds")
            array = np.zeros(count, np.float64 if seconds else np.int64)
            for positions, riders in parts:
                array[positions] = getattr(riders, field.name)
            arrays[field.name] = array
        return Riders(**arrays)

    @property
    def waits(self) -> NDArray[np.bool_]:
        """Whether a step ends with an answer that the next one needs; else the client goes on alone."""
        return self.down_messages > 0

    @property
    def turns(self) -> NDArray[np.bool_]:
        """Whether a step turns at a tail."""
        return self.up_messages > 1

    @property
    def num_computed(self) -> Ints:
        """Steps with arithmetic of the client's own."""
        return np.where(self.waits, self.num_steps, self.num_fresh)

    @property
    def step_seconds(self) -> Floats:
        """The client's own arithmetic in one fresh step."""
        return self.forward_seconds + self.turn_seconds + self.backward_seconds

    @property
    def compute_seconds(self) -> Floats:
        """The client's own arithmetic in all steps."""
        after = self.turn_seconds + self.backward_seconds
        return self.num_fresh * self.forward_seconds + self.num_computed * after

    @property
    def up_bytes(self) -> Ints:
        """Over the cut in all steps; down are ``down_bytes``."""
        return self.fresh_up_bytes + self.later_up_bytes

    @property
    def num_messages(self) -> Ints:
        """Over the cut, both ways, in all steps."""
        less = self.num_steps - self.num_fresh
        count: Ints = self.num_steps * (self.up_messages + self.down_messages) - less
        return count

    @property
    def first_up(self) -> "Leg":
        """To the cut, of a fresh step."""
        share = (self.fresh_up_bytes - self.fresh_turn_up_bytes) / np.maximum(self.num_fresh, 1)
        return Leg(num_messages=self.up_messages - self.turns, num_bytes=share)

    @property
    def later_up(self) -> "Leg":
        """To the cut, of a step that is not fresh."""
        share = self.later_up_bytes / np.maximum(self.num_steps - self.num_fresh, 1)
        return Leg(num_messages=0 * self.up_messages, num_bytes=np.where(self.turns, 0.0, share))

    @property
    def turn_down(self) -> "Leg":
        """To the tail."""
        share = self.turn_down_bytes / np.maximum(self.num_steps, 1)
        return Leg(num_messages=self.turns.astype(np.int64), num_bytes=share)

    @property
    def fresh_turn_up(self) -> "Leg":
        """From the tail, of a fresh step."""
        share = self.fresh_turn_up_bytes / np.maximum(self.num_fresh, 1)
        return Leg(num_messages=self.turns.astype(np.int64), num_bytes=share)

    @property
    def later_turn_up(self) -> "Leg":
        """From the tail, of a step that is not fresh."""
        share = self.later_up_bytes / np.maximum(self.num_steps - self.num_fresh, 1)
        return Leg(num_messages=self.turns.astype(np.int64), num_bytes=np.where(self.turns, share, 0.0))

    @property
    def last_down(self) -> "Leg":
        """From the cut."""
        share = (self.down_bytes - self.turn_down_bytes) / np.maximum(self.num_steps, 1)
        return Leg(num_messages=self.down_messages - self.turns, num_bytes=share)

    def seconds_alone(self, device: Device, sweep_seconds: Floats) -> Floats:
        """From the first step's start to the last one's end on a server with nobody else, [clients].

        Who waits for nothing sends on while the server sweeps, and both end when the later one does.

        Args:
            device: the clients' declared links.
            sweep_seconds: of one step alone on the server, [clients].
        """
        up, later_up = (
            self.first_up.up_seconds(device),
            self.later_up.up_seconds(device),
        )
        turn, later_turn = (
            self.turn_down.down_seconds(device) + back.up_seconds(device)
            for back in (self.fresh_turn_up, self.later_turn_up)
        )
        down = self.last_down.down_seconds(device)
        later = self.num_steps - self.num_fresh
        swept = self.num_steps * sweep_seconds
        own = self.num_fresh * (self.step_seconds + up)
        in_turn = (
            self.num_fresh * (self.step_seconds + up + turn)
            + later * (self.step_seconds - self.forward_seconds + later_up + later_turn)
            + self.num_steps * down
            + swept
        )
        between = np.maximum(self.step_seconds + up, sweep_seconds)  # of two sweeps, while it still sends
        last_sweep = self.forward_seconds + up + (self.num_fresh - 1) * between + (later + 1) * sweep_seconds
        seconds = np.where(self.waits, in_turn, np.maximum(own, last_sweep))
        return np.where(self.num_steps > 0, seconds, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One way over the cut in a step; arrays are [clients].

    Attributes:
        num_messages: each pays a round trip.
        num_bytes: an even share of a client's own.
    """

    num_messages: Ints
    num_bytes: Floats

    def trip_seconds(self, device: Device) -> Floats:
        """Before the first byte."""
        seconds: Floats = self.num_messages * device.rtt_seconds
        return seconds

    def up_seconds(self, device: Device) -> Floats:
        """Until the last byte, if it goes up."""
        return self.trip_seconds(device) + self.num_bytes * 8 / device.up_bps

    def down_seconds(self, device: Device) -> Floats:
        """Until the last byte, if it comes down."""
        return self.trip_seconds(device) + self.num_bytes * 8 / device.down_bps


def _step_seconds(footprint: Footprint, assignment: Assignment, device: Device) -> Floats:
    """Of a step, or look, before it sends, in its tail and after, [3, clients]."""
    compute = footprint.roofline.seconds(device.flops_per_s[assignment.dtype], device.memory_bytes_per_s)
    compute = compute / assignment.rides_per_step
    flops = footprint.forward_flops + footprint.backward_flops
    forward_share = footprint.forward_flops / flops if flops else 1.0
    turn_share = footprint.turn_flops / flops if flops else 0.0
    shares = (forward_share, turn_share, 1 - forward_share - turn_share)
    return np.stack([compute * share for share in shares])


def _server_flops(footprint: Footprint) -> int:
    assert footprint.server is not None, "a rider has a share of the server"
    return footprint.server.flops


def _seen(
    steps: Ints, per_epoch: Ints, batch_size: int, num_rows: Ints, num_tokens: Ints
) -> tuple[Ints, Ints]:
    """Rows and real tokens that so many steps go through."""
    epochs, rest = np.divmod(steps, np.maximum(per_epoch, 1))
    rows = np.minimum(rest * batch_size, num_rows)
    tokens = -(-num_tokens * rows // np.maximum(num_rows, 1))
    return epochs * num_rows + rows, epochs * num_tokens + tokens
