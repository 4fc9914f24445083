"""Black boxes on the virtual clock: looks, losses from the top of a sweep, and nothing on the way down."""

from dataclasses import replace

import numpy as np

from fedray.assignment import Assignment, lora_on_top
from fedray.cost import Crossing, Footprint, PeakTerms, Roofline, ServerShare, StepCost
from fedray.privacy import times_sent
from fedray.riders import Riders
from fedray.riding import spent_riding
from fedray.timetable import timetable
from travel import INF, device_of, server_of, travellers_of

NO_TERMS = PeakTerms(weights=0, adapters=0, gradients=0, optimizer=0, activations=0, logits=0)
LOOKS = Assignment(
    blocks=(0, 1),
    split=True,
    adapter=lora_on_top(4, 4, 2, targets=("query",)),
    batch_size=4,
    perturbations=2,
)


def footprint_of(*, flops, server_flops):
    """At each look 8 bytes a token, 4 a row and a loss of 4; one FLOP a second on the client."""
    return Footprint(
        peak_bytes=0,
        terms=NO_TERMS,
        forward_flops=flops,
        backward_flops=0,
        moved_bytes=0,
        roofline=Roofline([flops], [0]),
        up_bytes=0,
        down_bytes=0,
        held_bytes={},
        trained_params=0,
        crossing=Crossing(
            up_bytes_per_token=8,
            up_bytes_per_row=4,
            up_bytes_per_step=0,
            down_bytes_per_token=0,
            down_bytes_per_row=0,
            down_bytes_per_step=4,
            num_messages=2,
            kept=False,
        ),
        server=ServerShare(
            flops=server_flops,
            activation_bytes=0,
            adapter_bytes=0,
            first_block=2,
            end_block=4,
            comes_down=False,
        ),
    )


def test_two_steps_of_two_directions_are_eight_looks_and_take_as_long():
    # Six rows of 60 tokens are steps of four and two. A step computes 12 s, so a look 3 s. In all 4 times
    # (60 x 8 + 6 x 4) bytes go up, 252 a look, at 126 bytes a second 2 s; 4 bytes come down in 4 s at one a
    # second; each message pays half a second. The server takes 5 s a look, up alone.
    device = device_of(1, up_bps=126 * 8.0, down_bps=8.0, rtt_seconds=0.5)
    cost = StepCost(longest=footprint_of(flops=12, server_flops=5))
    riders = Riders.of(cost, LOOKS, device, np.array([6]), np.array([60]))
    assert (riders.num_steps[0], riders.num_messages[0]) == (8, 16)
    assert (riders.up_bytes[0], riders.down_bytes[0]) == (4 * (60 * 8 + 6 * 4), 8 * 4)
    assert riders.compute_seconds[0] == 24
    server = server_of(num_shards=1)
    share = cost.longest.server
    assert server.ride_seconds(share, riders.server_flops).tolist() == [5]
    assert riders.seconds_alone(device, np.array([5.0]))[0] == 8 * (3 + 0.5 + 2 + 5 + 0.5 + 4)
    # With two shards of it half comes over a link that takes longer: once up, where others pay it twice.
    two = server_of(num_shards=2, interconnect_bps=1.0, flops_per_s=1.0)
    assert two.ride_seconds(share, riders.server_flops).tolist() == [8]
    assert two.ride_seconds(replace(share, comes_down=True), riders.server_flops).tolist() == [16]


def test_black_boxes_go_up_first_and_are_told_before_the_others_are_at_the_top():
    # Both board at 1. The first goes up alone from 1 to 5 (4 FLOPs), is told then and boards again at 6. The
    # other goes up from 5 to 8 and down to 11, which is when the server takes the next look, to 15.
    who = travellers_of([1, 1], steps=[2, 1], flops=[4, 6], blind=[1, 0])
    table = timetable(server_of(), who)
    assert [
        (s.start_seconds, s.top_seconds, s.down_seconds, s.end_seconds, s.aboard) for s in table.sweeps
    ] == [
        (1, 8, 8, 11, (0, 1)),
        (11, 15, 15, 15, (0,)),
    ]
    assert [ends.tolist() for ends in table.step_ends] == [[5, 15], [11]]
    assert table.finish_seconds.tolist() == [15, 11]
    assert table.busy_seconds(INF) == 14
    spent = spent_riding(table, who, np.array([11.0, 11.0]))
    # It waited from 1 to 5, and since 6; the other one from 1 to 11.
    assert spent.waiting_seconds.tolist() == [9, 10]
    assert spent.compute_seconds.tolist() == [2, 1]
    assert spent.num_messages.tolist() == [3, 2]


def test_a_sweep_that_waits_for_a_tail_holds_up_no_black_box():
    # Up from 1 to 3 alone, then the tail's rider from 3 to 4, whose tail takes 10 s; down from 14 to 15.
    who = travellers_of(
        [1, 1], steps=1, flops=[2, 2], blind=[1, 0], turn=[0, 10], up_messages=[1, 2], down_messages=[1, 2]
    )
    table = timetable(server_of(), who)
    assert table.finish_seconds.tolist() == [3, 15]


def test_who_leaves_before_it_is_told_is_told_nothing():
    who = travellers_of([1, 1], steps=1, flops=[4, 6], blind=[1, 0], leave=[3, INF])
    table = timetable(server_of(), who)
    assert table.finish_seconds.tolist() == [INF, 11]
    assert table.step_ends[0].tolist() == []


def test_a_row_is_sent_at_every_look():
    # Ten rows are three steps an epoch; four looks each.
    assert [times_sent(LOOKS, 10, steps) for steps in (1, 3, 4, 6)] == [4, 4, 8, 8]
    assert times_sent(replace(LOOKS, perturbations=0), 10, 4) == 2
