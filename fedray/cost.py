"""What an assignment costs: a traced footprint for one step, and its price on a client's declared rates.

A step takes the sum over its operations of ``max(FLOPs / flops_per_s, bytes / memory_bytes_per_s)``:
an operation waits for arithmetic or for memory, whichever is slower (the roofline model).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.assignment import Assignment, Attention

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# An assignment fits if its predicted peak with this margin stays within memory_bytes: predictions
# are held to 2 % of the live counter, so what fits by prediction fits when it is counted.
MARGIN = 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkShape:
    """One local step's shape: batch rows, tokens a row is padded to, and the client's attention kernel."""

    rows: int
    tokens: int
    attention: Attention


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakTerms:
    """Bytes alive at the moment of the peak, by what they are; they add up to the peak."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The peak itself."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.logits


class Roofline:
    """The operations of one step, kept as sums so that a million clients are priced by a table look-up.

    Sorted by intensity (FLOPs per byte) the operations that wait for memory come first: those below
    the client's own ``flops_per_s / memory_bytes_per_s``. Two running sums give the exact total.
    """

    def __init__(self, flops: Sequence[float], moved_bytes: Sequence[float]) -> None:
        """Args: FLOPs and bytes moved of each operation, [ops] each, none negative.

        One that moves nothing waits for arithmetic alone; one that does neither costs nothing.
        """
        flops_ops, bytes_ops = np.asarray(flops, float), np.asarray(moved_bytes, float)
        costs = (flops_ops > 0) | (bytes_ops > 0)
        flops_ops, bytes_ops = flops_ops[costs], bytes_ops[costs]
        with np.errstate(divide="ignore"):
            intensity = flops_ops / bytes_ops
        order = np.argsort(intensity, kind="stable")
        self._intensity: Floats = intensity[order]
        self._bytes_below: Floats = np.concatenate([[0.0], np.cumsum(bytes_ops[order])])
        self._flops_above: Floats = np.concatenate([np.cumsum(flops_ops[order][::-1])[::-1], [0.0]])

    def seconds(self, flops_per_s: Floats, memory_bytes_per_s: Floats) -> Floats:
        """Seconds of one step on each client, [clients] in and out."""
        waiting = np.searchsorted(self._intensity, flops_per_s / memory_bytes_per_s)
        return self._bytes_below[waiting] / memory_bytes_per_s + self._flops_above[waiting] / flops_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What a step under a cut sends across it: bytes grow with real tokens, real rows and steps alone.

    Padding is not sent. The client sends hidden states up (under a tail, also their gradient at the
    server's last block), and what the loss needs where it lies on the server; down comes the gradient
    (under a tail, also the server's hidden states). Of a black-box client, to which a loss alone comes down,
    it is what one of a step's looks sends.

    Attributes:
        up_bytes_per_step: the client's part of the gradient's norm, where both sides clip as one;
            ``down_bytes_per_step`` the server's, or a look's loss.
        num_messages: of one step, each paying a round trip: 1 where nothing comes back, 2, 4 under a tail,
            3 under a tail with a frozen bottom, or 4 if a norm comes down to it. They go up and down in
            turns, up first.
        kept: hidden states never change (frozen bottom), so they go up in a row's first epoch only, with all
            that goes up for a token or a row except a tail's gradient. Later steps have one message less.
        tail_up_bytes_per_token: of ``up_bytes_per_token`` a tail's gradient, which crosses in every epoch.
    """

    up_bytes_per_token: int
    up_bytes_per_row: int
    up_bytes_per_step: int
    down_bytes_per_token: int
    down_bytes_per_row: int
    down_bytes_per_step: int
    num_messages: int
    kept: bool
    tail_up_bytes_per_token: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerShare:
    """What one client's step costs the server; of a black-box client what one of its looks does.

    Attributes:
        flops: forward and backward.
        activation_bytes: most that is alive on the server for the client's rows between joining and the end
            of the sweep; admission holds the sum over clients in flight to its memory. Of a frozen bottom's
            rows those of one step, though the server keeps all of them for later epochs.
        adapter_bytes: of the client's own server-side tensors, as sent and as trained, with gradients and
            optimizer.
        first_block: the cut; ``end_block`` is one past the last block the server runs for it.
        comes_down: whether anything goes back through these blocks; nothing does for a black-box client.
    """

    flops: int
    activation_bytes: int
    adapter_bytes: int
    first_block: int
    end_block: int
    comes_down: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one local step of an assignment costs a client, traced from the real step.

    Attributes:
        peak_bytes: most bytes alive at once; ``terms`` says of what.
        forward_flops: two per multiply-add; under a cut those below it, before the first message goes up.
            ``backward_flops`` all others: recomputation too, and what a tail does, which is ``turn_flops``.
        moved_bytes: read and written by all operations.
        up_bytes: of the update on the wire, coded and serialised; ``down_bytes`` of what the client starts
            from. Under a cut of its own share alone.
        held_bytes: the frozen parts the client must hold, by piece (``"stem"``, ``"block.3"``, ``"head"``).
        trained_params: numbers the client trains, those that the server trains for it included.
        crossing: what crosses the cut; ``server`` what the step costs the server. None without a cut.
    """

    peak_bytes: int
    terms: PeakTerms
    forward_flops: int
    backward_flops: int
    moved_bytes: int
    roofline: Roofline
    up_bytes: int
    down_bytes: int
    held_bytes: Mapping[str, int]
    trained_params: int
    crossing: Crossing | None = None
    server: ServerShare | None = None
    turn_flops: int = 0

    def fits(self, memory_bytes: int | Ints) -> bool | NDArray[np.bool_]:
        """Whether the peak, with the margin, stays within the memory."""
        return self.peak_bytes * MARGIN <= memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a step of some clients costs on average: memory for their longest rows, time for their batches.

    A batch is padded to its own longest row. Time is linear in that between two traced lengths.

    Attributes:
        longest: of a batch as long as the clients' longest row.
        shortest: of one as long as the shortest row there is; None where all are as long as the longest.
        share: of the way from the longest to the shortest at which each client's batches lie, [clients].
    """

    longest: Footprint
    shortest: Footprint | None = None
    share: Floats | None = None

    def mean(self, of: Callable[[Footprint], Floats]) -> Floats:
        """Anything that follows from a footprint, [..., clients], at the mean length of a batch."""
        at_longest = of(self.longest)
        if self.shortest is None or self.share is None:
            return at_longest
        return at_longest + self.share * (of(self.shortest) - at_longest)


def steps_of(assignment: Assignment, per_epoch: Ints) -> Ints:
    """Local steps of each client, [clients], of which so many are an epoch."""
    if assignment.max_steps is not None:
        return np.full(len(per_epoch), assignment.max_steps, np.int64)
    return assignment.num_epochs * per_epoch


Footprints = Mapping[tuple[Assignment, WorkShape], Footprint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What pricing reads of each client of a cohort; arrays are [clients]."""

    memory_bytes: Ints
    storage_bytes: Ints
    flops_per_s: Mapping[str, Floats]
    memory_bytes_per_s: Floats
    up_bps: Floats
    down_bps: Floats
    rtt_seconds: Floats
    compute_watts: Floats
    idle_watts: Floats
    radio_joules_per_byte: Floats

    def take(self, index: Ints) -> "Device":
        """The same for the clients at ``index``."""
        arrays = {name: getattr(self, name)[index] for name in self.__slots__ if name != "flops_per_s"}
        return Device(flops_per_s={k: v[index] for k, v in self.flops_per_s.items()}, **arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Assignments on the clients of a cohort; arrays are [clients], or [menu, clients] for a whole menu."""

    virtual_seconds: Floats
    compute_seconds: Floats
    joules: Floats
    up_bytes: Ints
    down_bytes: Ints
    provision_bytes: Ints


def price(footprint: Footprint, dtype: str, device: Device, num_steps: Ints, provision_bytes: Ints) -> Price:
    """One footprint on many clients: receive, compute, send, one after the other.

    Args:
        footprint: of one step.
        dtype: whose arithmetic rate counts.
        device: the clients' declared rates.
        num_steps: local steps of each client, [clients].
        provision_bytes: frozen bytes that must still reach each client, [clients].
    """
    clients = num_steps.shape
    step_seconds = footprint.roofline.seconds(device.flops_per_s[dtype], device.memory_bytes_per_s)
    return price_trips(
        device,
        compute_seconds=num_steps * step_seconds,
        up_bytes=np.full(clients, footprint.up_bytes, np.int64),
        down_bytes=np.full(clients, footprint.down_bytes, np.int64),
        provision_bytes=provision_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Middle:
    """What lies between receiving and sending where clients have cuts; [clients] or [menu, clients].

    Attributes:
        seconds: from the first step's start to the last one's end: computing, the cut's messages, waiting.
        boundary_bytes: up and down over the cut.
    """

    seconds: Floats
    boundary_bytes: Ints


def price_trips(
    device: Device,
    *,
    compute_seconds: Floats,
    up_bytes: Ints,
    down_bytes: Ints,
    provision_bytes: Ints,
    middle: Middle | None = None,
) -> Price:
    """What receiving, computing and sending take together; arrays are [clients] or [menu, clients].

    Each of the two messages pays one round trip. The radio's energy is per byte; while it waits
    for the network or for a server a client draws its idle watts, while it computes its compute watts.
    Without ``middle`` there is nothing but computing between the two.
    """
    received = down_bytes + provision_bytes
    link_seconds = 2 * device.rtt_seconds + received * 8 / device.down_bps + up_bytes * 8 / device.up_bps
    within = compute_seconds if middle is None else middle.seconds
    crossed = 0 if middle is None else middle.boundary_bytes
    joules = (
        compute_seconds * device.compute_watts
        + (link_seconds + (within - compute_seconds)) * device.idle_watts
        + (received + up_bytes + crossed) * device.radio_joules_per_byte
    )
    return Price(
        virtual_seconds=within + link_seconds,
        compute_seconds=compute_seconds,
        joules=joules,
        up_bytes=up_bytes,
        down_bytes=down_bytes,
        provision_bytes=provision_bytes,
    )
