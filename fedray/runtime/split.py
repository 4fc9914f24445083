"""A round under a cut as a runtime is asked for it, and as one process does it.

Letters of shapes: none; messages and updates travel as values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedray.adapter import Adapter
from fedray.assignment import Attention
from fedray.server.in_process import InProcessServer
from fedray.server.lockstep import Order, SplitRound, Traffic, run_lockstep, updates_of
from fedray.training.client_half import PackHalves
from fedray.training.data import Rows
from fedray.training.evaluate import Elsewhere
from fedray.training.job import Update
from fedray.training.parted import Middle
from fedray.training.tap import Heard
from fedray.training.train import Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetting:
    """How the server of a run works.

    Attributes:
        num_shards: sweeps side by side; packs are shared out among them.
        shared: one adapter for everybody (SplitFed v2) in place of one each (v1).
        order: all packs in one sweep, or one after another.
        attention: the server's kernel; ``recompute`` its activation checkpointing.
        targets: the features that a loss on the server reads.
        clips: whether gradients are clipped at all.
        client_deadline_seconds: wall seconds that clients may take over their part of a step.
    """

    num_shards: int
    shared: bool
    order: Order
    attention: Attention
    recompute: bool
    targets: tuple[str, ...]
    clips: bool
    client_deadline_seconds: float

    @property
    def clips_as_one(self) -> bool:
        """Whether both sides' parts of a client's gradient are clipped as one: with an adapter each."""
        return self.clips and not self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEvaluation:
    """Chunks of rows to evaluate an adapter on, with blocks from ``first`` up to ``end`` on the server."""

    adapter: Adapter
    chunks: Sequence[Rows]
    first: int
    end: int

    def beside(self, middle: Middle) -> Elsewhere:
        """What runs elsewhere, and by whom."""
        return Elsewhere(first=self.first, end=self.end, middle=middle)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDone:
    """What it came to.

    Attributes:
        updates: by pack; packs that vanished are left out.
        up_bytes: that crossed, by client; ``down_bytes`` and ``num_messages`` likewise.
        attempts: how often the round was begun; 1 unless a process died over it.
    """

    updates: Mapping[int, Sequence[Update]]
    up_bytes: Mapping[int, int] = field(default_factory=dict)
    down_bytes: Mapping[int, int] = field(default_factory=dict)
    num_messages: Mapping[int, int] = field(default_factory=dict)
    attempts: int = 1

    def crossed(self, client_id: int) -> tuple[int, int, int]:
        """Bytes up and down, and messages, of one client."""
        kinds = self.up_bytes, self.down_bytes, self.num_messages
        return tuple(kind.get(client_id, 0) for kind in kinds)  # type: ignore[return-value]


def done(updates: Mapping[int, Sequence[Update]], traffic: Traffic, attempts: int) -> SplitDone:
    """The end of a round."""
    return SplitDone(
        updates=updates,
        up_bytes=traffic.up_bytes,
        down_bytes=traffic.down_bytes,
        num_messages=traffic.num_messages,
        attempts=attempts,
    )


def train_in_process(
    workshop: Workshop, split: SplitRound, server: ServerSetting, heard: Heard | None = None
) -> SplitDone:
    """Clients and server in this process: it defines what is correct."""
    clients = PackHalves(
        workshop,
        split.packs,
        server.targets,
        clips_as_one=server.clips_as_one,
        base_delta=split.base_delta,
    )
    above = InProcessServer(
        workshop,
        split,
        num_shards=server.num_shards,
        attention=server.attention,
        recompute=server.recompute,
    )
    traffic = run_lockstep(clients, above, server.order, shared=server.shared, heard=heard)
    updates = dict(updates_of(split.packs, clients, above))
    return done(updates, traffic, 1)
