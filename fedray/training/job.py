"""What goes to a client and what comes back: frozen values between the engine, a runtime and a client."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedray.adapter import Adapter
from fedray.assignment import Assignment, Attention
from fedray.masking import Masking
from fedray.mechanism import CutNoise, Mechanism
from fedray.observable import Observable

# What a client keeps between rounds and never sends, by name: who adds to it starts its names with one of its
# own, and hands on what others put there.
ClientState = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What goes to one client.

    Attributes:
        dispatch: tells apart two dispatches of one client in one round.
        version: of the global state it starts from.
        sent: the adapter it starts from, at its own ranks, as it has it; without its own side where it kept
            that.
        sent_bytes: that crossed to bring it its own share.
        num_rows: of its own data; ``num_steps`` local steps on them: the assignment's, or the first so many.
        tokens: what its rows are padded to at most.
        attention: the kernel it declares.
        client_state: what the client kept of the round it last took part in.
        variate: the server's control variate, by flat name; nothing where a run has none.
        keeps_own_side: its side of its cut stays with it after the round, in what it keeps.
        learning_rate_scale: what the schedule makes of the optimizer's rates in this round.
        observables: statistics of its blocks that it sends along.
        weight: of its update among others, where it applies that itself: under ``masking``.
        masking: what it hides its update with.
        update_factor: what it multiplies its update by before it is sent: 1, but for attackers.
        privacy: what it does itself to its update before it sends it (local privacy).
        cut_noise: what it does to hidden states before they cross its cut.
        keeps_plain: its update comes as it was before coding, too, for who measures what codecs cost.
    """

    round: int
    client_id: int
    dispatch: int
    version: int
    seed: int
    assignment: Assignment
    attention: Attention
    sent: Adapter
    num_rows: int
    num_steps: int
    tokens: int
    sent_bytes: int = 0
    client_state: ClientState = field(default_factory=dict)
    variate: Mapping[str, Tensor] = field(default_factory=dict)
    keeps_own_side: bool = False
    learning_rate_scale: float = 1.0
    observables: tuple[Observable, ...] = ()
    privacy: Mechanism | None = None
    cut_noise: CutNoise | None = None
    masking: Masking | None = None
    weight: float = 1.0
    update_factor: float = 1.0
    keeps_plain: bool = False


def lone_job(assignment: Assignment, sent: Adapter, *, num_rows: int, tokens: int) -> Job:
    """What a client by itself, outside of any run, is told to do with rows of its own."""
    return Job(
        round=1,
        client_id=0,
        dispatch=0,
        version=0,
        seed=0,
        assignment=assignment,
        attention="memory_efficient",
        sent=sent,
        num_rows=num_rows,
        num_steps=assignment.num_steps(num_rows),
        tokens=tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What comes back: always a delta against what was sent.

    Attributes:
        delta: trained minus sent, tensor by tensor, at the client's own ranks; None if it failed, or while
            it travels. Of its own side of a cut minus what it was sent after the last averaging, or nothing
            where it keeps that.
        coded: the client's own share of the delta as it crosses; None if it failed, or before it is sent.
        plain: the delta as it was told before coding, for who measures what codecs cost; it crosses no link.
        told: how far a forward-only client went along each shared direction, where that is all it sends.
        loss: mean over the client's real rows and all its steps.
        client_state: what the client keeps from now on, all of it; it crosses no link.
        statistics: what a policy's observables asked for, [num_blocks] each.
        lost: of the update's length, the share that its codec changed; None where it goes plain.
        message: why it failed, empty if it did not.
    """

    client_id: int
    dispatch: int
    version: int
    delta: Adapter | None
    num_rows: int
    loss: float
    wall_seconds: float
    coded: Mapping[str, Tensor] | None = None
    plain: Adapter | None = None
    told: Tensor | None = None
    client_state: ClientState = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    lost: float | None = None
    message: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that crosses the wire, by a flat name; nothing if the client failed."""
        return {} if self.coded is None else message(self.coded, self.statistics)


def message(coded: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a client sends up, by a flat name; what `wire_bytes` counts."""
    return {**coded, **{f"statistics.{name}": tensor for name, tensor in statistics.items()}}
