"""What a client does under a cut and what crosses: cases worked by hand, then laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import Crossing, Device, Footprint, PeakTerms, Roofline, ServerShare, StepCost
from fedray.riders import Riders

NO_TERMS = PeakTerms(weights=0, adapters=0, gradients=0, optimizer=0, activations=0, logits=0)
# 500 bytes a second up, 1000 down, a quarter of a second a message, 10 FLOP/s.
LINKS = {"up_bps": 4000.0, "down_bps": 8000.0, "rtt_seconds": 0.25}


def device_of(count=1, **changes):
    one = np.ones(count)
    rates = {"flops_per_s": {"fp32": 10 * one}, "memory_bytes_per_s": one}
    facts = {"compute_watts": 5 * one, "idle_watts": one, "radio_joules_per_byte": 0.001 * one}
    sizes = {"memory_bytes": np.full(count, 1000), "storage_bytes": np.full(count, 10**9)}
    links = {name: value * one for name, value in (LINKS | changes).items()}
    return Device(**rates, **facts, **sizes, **links)


def crossing_of(**changes):
    """Eight bytes a token up and down, four a row and two a step up; one message each way."""
    facts = {
        "up_bytes_per_token": 8,
        "up_bytes_per_row": 4,
        "up_bytes_per_step": 2,
        "down_bytes_per_token": 8,
        "down_bytes_per_row": 0,
        "down_bytes_per_step": 0,
        "num_messages": 2,
        "kept": False,
    }
    return Crossing(**(facts | changes))


FROZEN = crossing_of(down_bytes_per_token=0, num_messages=1, kept=True, up_bytes_per_step=0)
LOCAL = crossing_of(down_bytes_per_token=0, num_messages=1)


def footprint_of(crossing, *, forward_flops=5, backward_flops=15, server_flops=300):
    """A step of two seconds at 10 FLOP/s, a quarter of it forward."""
    flops = forward_flops + backward_flops
    return Footprint(
        peak_bytes=0,
        terms=NO_TERMS,
        forward_flops=forward_flops,
        backward_flops=backward_flops,
        moved_bytes=0,
        roofline=Roofline([flops], [0]),
        up_bytes=0,
        down_bytes=0,
        held_bytes={},
        trained_params=0,
        crossing=crossing,
        server=ServerShare(
            flops=server_flops, activation_bytes=0, adapter_bytes=0, first_block=2, end_block=4
        ),
    )


def assignment_of(**changes):
    adapter = Lora(ranks=(4,) * 4, targets=("query",))
    return Assignment(blocks=(0, 1), split=True, adapter=adapter, **({"batch_size": 4} | changes))


def riders_of(crossing, assignment, *, num_rows=10, num_tokens=100, **flops):
    """One client with ten rows of a hundred real tokens in all."""
    rows, tokens = np.array([num_rows]), np.array([num_tokens])
    cost = StepCost(longest=footprint_of(crossing, **flops))
    return Riders.of(cost, assignment, device_of(), rows, tokens)


def only(array):
    [value] = array.tolist()
    return value


# Bytes.


def test_two_epochs_send_every_row_and_every_real_token_twice():
    riders = riders_of(crossing_of(), assignment_of(num_epochs=2))
    assert only(riders.num_steps) == 6
    # 2 x (100 tokens x 8 + 10 rows x 4) + 6 steps x 2, and back 2 x 100 x 8.
    assert (only(riders.up_bytes), only(riders.down_bytes)) == (1692, 1600)
    assert only(riders.num_messages) == 12


def test_steps_that_end_within_an_epoch_count_rows_of_mean_length():
    # Three steps are an epoch, the fourth has four of ten rows: 40 of 100 tokens.
    riders = riders_of(crossing_of(), assignment_of(max_steps=4))
    assert (only(riders.up_bytes), only(riders.down_bytes)) == (140 * 8 + 14 * 4 + 4 * 2, 140 * 8)


def test_what_is_kept_crosses_in_the_first_epoch_and_later_steps_send_nothing():
    adapter = HeadOnly()
    frozen = Assignment(blocks=(0, 1), split=True, adapter=adapter, batch_size=4, num_epochs=3)
    riders = riders_of(FROZEN, frozen, backward_flops=0)
    assert (only(riders.num_steps), only(riders.num_fresh)) == (9, 3)
    assert (only(riders.fresh_up_bytes), only(riders.later_up_bytes)) == (840, 0)
    assert (only(riders.down_bytes), only(riders.num_messages)) == (0, 3)
    # Half a second of forward in each of three steps, and nothing after.
    assert only(riders.compute_seconds) == 1.5


def test_a_tail_over_a_frozen_bottom_sends_its_gradient_in_every_epoch():
    crossing = crossing_of(
        up_bytes_per_token=16, tail_up_bytes_per_token=8, up_bytes_per_row=0, num_messages=3, kept=True
    )
    frozen = Assignment(blocks=(0, 1), split=True, tail=1, adapter=HeadOnly(), batch_size=4, num_epochs=2)
    riders = riders_of(crossing, frozen)
    assert only(riders.fresh_up_bytes) == 16 * 100 + 3 * 2
    assert only(riders.later_up_bytes) == 8 * 100 + 3 * 2
    assert only(riders.down_bytes) == 2 * 800
    # Two up and one down in the first three steps, one and one in the others, whose rows are known above:
    # 3 x 2 s, and 3 x 1.5 s without what lies below the cut.
    assert only(riders.num_messages) == 3 * 3 + 3 * 2
    assert only(riders.compute_seconds) == 10.5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 3),
    st.tuples(*[st.integers(0, 50)] * 6),
    st.booleans(),
)
def test_whole_epochs_send_exactly_what_their_batches_add_up_to(lengths, batch, epochs, sizes, kept):
    up_token, up_row, up_step, down_token, down_row, down_step = sizes
    crossing = crossing_of(
        up_bytes_per_token=up_token,
        up_bytes_per_row=up_row,
        up_bytes_per_step=up_step,
        down_bytes_per_token=down_token,
        down_bytes_per_row=down_row,
        down_bytes_per_step=down_step,
        kept=kept,
    )
    riders = riders_of(
        crossing,
        assignment_of(batch_size=batch, num_epochs=epochs),
        num_rows=len(lengths),
        num_tokens=sum(lengths),
    )
    up = down = 0
    for epoch in range(epochs):
        for start in range(0, len(lengths), batch):
            rows = lengths[start : start + batch]
            crosses = epoch == 0 or not kept
            up += up_step + crosses * (up_token * sum(rows) + up_row * len(rows))
            down += down_step + down_token * sum(rows) + down_row * len(rows)
    assert (only(riders.up_bytes), only(riders.down_bytes)) == (up, down)


# Seconds on a server with nobody else.


def test_a_step_is_forward_up_sweep_down_and_backward_one_after_the_other():
    # 250 bytes up in a step take 0.25 + 0.5 s, 500 down 0.25 + 0.5 s; two seconds here, three there.
    crossing = crossing_of(
        up_bytes_per_token=5, up_bytes_per_row=0, up_bytes_per_step=0, down_bytes_per_token=10
    )
    riders = riders_of(crossing, assignment_of(max_steps=2), num_rows=8)
    device = device_of()
    assert only(riders.first_up.up_seconds(device)) == 0.75
    assert only(riders.last_down.down_seconds(device)) == 0.75
    assert only(riders.seconds_alone(device, np.array([3.0]))) == 2 * (0.5 + 0.75 + 3 + 0.75 + 1.5)


@pytest.mark.parametrize(
    ("sweep_seconds", "whole"),
    [
        # The client takes 3 s a step: 0.5 forward, 1 up, 1.5 backward. It sends at 1.5, 4.5 and 7.5.
        (1.0, 9.0),  # The last sweep ends at 8.5, its own backward at 9.
        (2.0, 9.5),
        (4.0, 13.5),  # The server falls behind: 1.5, then three sweeps.
    ],
)
def test_with_a_local_loss_client_and_server_work_side_by_side(sweep_seconds, whole):
    crossing = crossing_of(
        up_bytes_per_token=0,
        up_bytes_per_row=0,
        up_bytes_per_step=375,
        down_bytes_per_token=0,
        num_messages=1,
    )
    riders = riders_of(crossing, assignment_of(max_steps=3))
    assert only(riders.seconds_alone(device_of(), np.array([sweep_seconds]))) == whole


def test_a_frozen_bottom_sends_once_and_the_server_goes_on_alone():
    # Three steps of 0.5 forward and 0.25 + 0.56 up; each of nine sweeps takes 2 s.
    riders = riders_of(FROZEN, assignment_of(num_epochs=3), backward_flops=0)
    first = 0.5 + only(riders.first_up.up_seconds(device_of()))
    assert first == 0.5 + 0.25 + 280 / 500
    assert only(riders.seconds_alone(device_of(), np.array([2.0]))) == pytest.approx(first + 9 * 2)


def test_who_has_no_cut_has_no_steps_and_takes_no_time():
    riders = Riders.placed(3, [(np.array([1]), riders_of(crossing_of(), assignment_of()))])
    assert riders.num_steps.tolist() == [0, 3, 0]
    seconds = riders.seconds_alone(device_of(3), np.ones(3))
    assert seconds[[0, 2]].tolist() == [0, 0]
    assert seconds[1] > 0
    assert riders.only(np.array([True, False, True])).num_steps.tolist() == [0, 0, 0]
