"""A model of four blocks whose prices can be worked out by hand, made-up clients, and a server above cuts.

A step takes 5 FLOPs and 100 more for each block, and a client holds 100 bytes, 10 more for each of its blocks
and 1 more for each unit of rank on them, 3 fewer where a block's activations are in 8 bits; of blocks of half
the width half of that. A batch is four rows; a client has eight, of 50 real tokens, and sends 4 bytes of each
up and, where a gradient comes down, gets 4 back, at 100 bytes a second and 0.1 s a message; a black box gets
4 at each of its looks. The server does 50 FLOP/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import Crossing, Device, Footprint, Ints, PeakTerms, Roofline, ServerShare, WorkShape
from fedray.holdings import Holdings
from fedray.menu import Grid
from fedray.policy import Cohort
from fedray.scheduler import Pricing
from fedray.trained import Prompt, Weights
from fedray.virtual_server import VirtualServer

BLOCKS = 4
GRID = Grid(num_blocks=BLOCKS, targets=("query",), ranks=(2, 8), cuts=(1, 2, 3), batch_sizes=(4,))
SERVER = VirtualServer(
    num_shards=1,
    flops_per_s=50.0,
    memory_bytes=10**4,
    interconnect_bps=1e3,
    watts=10.0,
    block_bytes=(100,) * BLOCKS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A device and its data; links are alike both ways."""

    memory_bytes: int
    flops_per_s: float = 100.0
    bps: float = 800.0
    rtt_seconds: float = 0.1
    storage_bytes: int = 10**6
    num_rows: int = 8
    num_tokens: int = 50

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.memory_bytes} B of memory, {self.storage_bytes} of storage, {self.flops_per_s:g} FLOP/s, "
            f"{self.bps:g} bit/s, {self.num_rows} rows"
        )


def cohort_of(
    clients: Sequence[Client], client_ids: Ints | None = None, *, number: int = 1, seed: int = 0
) -> Cohort:
    """These clients as round ``number`` has them, by default with ids from 0."""
    one = np.ones(len(clients))

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([getattr(client, name) for client in clients], np.float64)

    def counts(name: str) -> Ints:
        return np.array([getattr(client, name) for client in clients], np.int64)

    return Cohort(
        round=number,
        seed=seed,
        client_ids=np.arange(len(clients)) if client_ids is None else client_ids,
        device_class=np.full(len(clients), "phone"),
        device=Device(
            memory_bytes=counts("memory_bytes"),
            storage_bytes=counts("storage_bytes"),
            flops_per_s={"fp32": column("flops_per_s")},
            memory_bytes_per_s=one,
            up_bps=column("bps"),
            down_bps=column("bps"),
            rtt_seconds=column("rtt_seconds"),
            compute_watts=one,
            idle_watts=one,
            radio_joules_per_byte=one,
        ),
        num_rows=counts("num_rows"),
        tokens=np.full(len(clients), 8),
        attention=np.full(len(clients), "memory_efficient"),
        num_tokens=counts("num_tokens"),
    )


def pricing_of(server: VirtualServer = SERVER) -> Pricing:
    """Prices of the model; every client holds its weights already."""
    holdings = Holdings(100, preinstalled=True)
    return Pricing(footprint_of=footprint_of, holdings=holdings, server=server)


def footprint_of(entry: Assignment, work: WorkShape) -> Footprint:
    """What one step costs, whatever its shape."""
    held = entry.client_blocks(BLOCKS) if entry.split else entry.blocks
    ranks = ranks_of(entry)
    own_ranks = sum(ranks.get(block, 0) for block in held)
    share = 1.0 if entry.width is None else entry.width.share
    flops = 5 + round(100 * len(held) * share)
    return Footprint(
        peak_bytes=100 + round(10 * len(held) * share) + own_ranks - 3 * entry.int8_activations,
        terms=PeakTerms(weights=0, adapters=0, gradients=0, optimizer=0, activations=0, logits=0),
        forward_flops=flops,
        backward_flops=0,
        moved_bytes=0,
        roofline=Roofline([flops], [0]),
        up_bytes=own_ranks,
        down_bytes=own_ranks,
        held_bytes={piece: 10 for piece in ("stem", *(f"block.{block}" for block in held), "head")},
        trained_params=sum(ranks.values()),
        crossing=_crossing(entry) if entry.split else None,
        server=_server_share(entry, sum(ranks.values()) - own_ranks) if entry.split else None,
    )


def ranks_of(entry: Assignment) -> dict[int, int]:
    """The rank of each block that has one, by its number in the model; trained weights count as rank 1."""
    match entry.adapter:
        case Lora(ranks=ranks):
            blocks = range(BLOCKS) if entry.split else entry.blocks
            return dict(zip(blocks, ranks, strict=True))
        case Weights(trained=trained):
            return dict(zip(entry.blocks, map(int, trained), strict=True))
        case Prompt() | HeadOnly():
            return {}
        case _:
            assert_never(entry.adapter)


def _crossing(entry: Assignment) -> Crossing:
    down, told = 4 * entry.gradient_comes_down, 4 * entry.is_black_box
    return Crossing(
        up_bytes_per_token=4,
        up_bytes_per_row=0,
        up_bytes_per_step=0,
        down_bytes_per_token=down,
        down_bytes_per_row=0,
        down_bytes_per_step=told,
        num_messages=2 if down or told else 1,
        kept=entry.frozen_bottom,
    )


def _server_share(entry: Assignment, ranks: int) -> ServerShare:
    count = len(entry.server_blocks(BLOCKS))
    return ServerShare(
        flops=100 * count,
        activation_bytes=10 * count,
        adapter_bytes=ranks,
        first_block=entry.cut,
        end_block=BLOCKS,
        comes_down=not entry.is_black_box,
    )


def with_memory(server: VirtualServer, room_bytes: int) -> VirtualServer:
    """The server with so much memory beside its blocks."""
    return replace(server, memory_bytes=sum(server.block_bytes) + room_bytes)
