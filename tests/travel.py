"""Clients and a server whose seconds are plain to see, for sweeps worked out by hand."""

import numpy as np

from fedray.cost import Device, ServerShare
from fedray.riders import Riders
from fedray.timetable import Travellers
from fedray.virtual_server import VirtualServer

INF = np.inf


def server_of(**changes):
    facts = {
        "num_shards": 1,
        "flops_per_s": 1.0,
        "memory_bytes": 10**9,
        "interconnect_bps": 8.0,
        "watts": 1.0,
        "block_bytes": (1, 1, 1, 1),
    }
    return VirtualServer(**(facts | changes))


def device_of(count, **links):
    one = np.ones(count)
    facts = {"up_bps": 8.0, "down_bps": 8.0, "rtt_seconds": 0.0} | links
    return Device(
        memory_bytes=np.full(count, 1),
        storage_bytes=np.full(count, 1),
        flops_per_s={"fp32": one},
        memory_bytes_per_s=one,
        compute_watts=one,
        idle_watts=one,
        radio_joules_per_byte=one,
        **{name: value * one for name, value in facts.items()},
    )


def ride_seconds(server, flops, cut, *, blind=False):
    """What a sweep for one step of so much arithmetic takes until it has its answer."""
    share = ServerShare(
        flops=flops, activation_bytes=0, adapter_bytes=0, first_block=cut, end_block=4, comes_down=not blind
    )
    return server.ride_seconds(share, np.array([flops]))[0]


def ints(values, count):
    return np.broadcast_to(np.array(values, np.int64), count).copy()


def floats(values, count):
    return np.broadcast_to(np.array(values, float), count).copy()


def travellers_of(forward, *, backward=0.0, steps=2, flops=1, start=0.0, leave=INF, **changes):
    """Clients whose next step waits for the sweep; ``forward`` seconds for each of them."""
    count = len(forward)
    num_steps = ints(steps, count)
    riders = Riders(
        num_steps=num_steps,
        num_fresh=ints(changes.pop("fresh", num_steps), count),
        forward_seconds=floats(forward, count),
        turn_seconds=floats(changes.pop("turn", 0), count),
        backward_seconds=floats(backward, count),
        fresh_up_bytes=ints(changes.pop("up_bytes", 0), count),
        fresh_turn_up_bytes=ints(changes.pop("turn_up_bytes", 0), count),
        later_up_bytes=ints(0, count),
        down_bytes=ints(changes.pop("down_bytes", 0), count),
        turn_down_bytes=ints(changes.pop("turn_down_bytes", 0), count),
        up_messages=ints(changes.pop("up_messages", 1), count),
        down_messages=ints(changes.pop("down_messages", 1), count),
        server_flops=ints(flops, count),
        first_block=ints(changes.pop("first_block", 0), count),
        blind=ints(changes.pop("blind", 0), count),
    )
    return Travellers(
        client_ids=ints(changes.pop("client_ids", np.arange(count)), count),
        riders=riders,
        device=device_of(count, **changes),
        start_seconds=floats(start, count),
        leave_seconds=floats(leave, count),
    )
