"""The virtual round: one worked by hand, then laws."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.clock import close_round, draw_dropouts, draw_online
from fedray.cost import Device, price_trips
from fedray.errors import ConfigError
from fedray.policy import Pace
from fedray.riders import Riders
from fedray.trips import Trips
from fedray.virtual_server import VirtualServer

STAYS = np.inf


def trips_of(compute_seconds, *, client_ids=None, fits=None):
    """Clients that receive 1000 bytes in 2 s, of which half are provision, and send 500 bytes in 2 s."""
    count = len(compute_seconds)
    many = np.ones(count)
    device = Device(
        memory_bytes=np.full(count, 100),
        storage_bytes=np.full(count, 100),
        flops_per_s={"fp32": many},
        memory_bytes_per_s=many,
        up_bps=4000 * many,
        down_bps=8000 * many,
        rtt_seconds=1 * many,
        compute_watts=5 * many,
        idle_watts=1 * many,
        radio_joules_per_byte=0.01 * many,
    )
    return Trips(
        client_ids=np.arange(count) if client_ids is None else np.array(client_ids),
        device=device,
        fits=np.ones(count, bool) if fits is None else np.array(fits),
        compute_seconds=np.array(compute_seconds, float),
        up_bytes=np.full(count, 500),
        down_bytes=np.full(count, 500),
        provision_bytes=np.full(count, 500),
    )


def take(trips, order):
    return dataclasses.replace(trips.take(order), server=trips.server, shared_link=trips.shared_link)


def test_without_goal_or_deadline_the_round_waits_for_the_slowest():
    closed = close_round(trips_of([1, 6, 3]), Pace())
    assert closed.outcomes == ("ok", "ok", "ok")
    assert closed.client_seconds.tolist() == [5, 10, 7]
    assert closed.virtual_seconds == 10


def test_the_second_arrival_closes_a_round_with_goal_two():
    closed = close_round(trips_of([1, 6, 3]), Pace(goal=2))
    assert closed.outcomes == ("ok", "late", "ok")
    assert closed.virtual_seconds == 7
    # Client 1 received everything by second 2, computed for 5 s, and had not begun to send.
    assert (closed.down_bytes[1], closed.provision_bytes[1], closed.up_bytes[1]) == (500, 500, 0)
    assert closed.joules[1] == pytest.approx(2 * 1 + 5 * 5 + 1000 * 0.01)


def test_a_deadline_calls_off_who_is_still_sending_and_charges_the_part_that_left():
    # Receiving ends at 2, computing at 8, the round trip at 9; half of the one second of bytes is out at 9.5.
    closed = close_round(trips_of([1, 6]), Pace(deadline_seconds=9.5))
    assert closed.outcomes == ("ok", "late")
    assert closed.virtual_seconds == 9.5
    assert closed.up_bytes.tolist() == [500, 250]
    assert closed.joules[1] == pytest.approx(3.5 * 1 + 6 * 5 + 1250 * 0.01)


def test_an_arrival_at_the_deadline_counts():
    assert close_round(trips_of([1, 6]), Pace(deadline_seconds=10)).outcomes == ("ok", "ok")


def test_of_equal_arrivals_the_smaller_client_id_comes_first_whatever_the_order():
    closed = close_round(trips_of([1, 1, 1], client_ids=[9, 4, 7]), Pace(goal=2))
    assert closed.outcomes == ("late", "ok", "ok")
    assert closed.virtual_seconds == 5
    assert closed.up_bytes.tolist() == [500, 500, 500]


def test_a_client_that_leaves_is_charged_what_it_had_used():
    # It leaves after 0.15 of 10 s: the round trip and half a second of bytes, provision first.
    closed = close_round(trips_of([6, 1]), Pace(), np.array([0.15, STAYS]))
    assert closed.outcomes == ("dropped", "ok")
    assert closed.client_seconds.tolist() == [1.5, 5]
    assert (closed.provision_bytes[0], closed.down_bytes[0], closed.up_bytes[0]) == (500, 0, 0)
    assert closed.joules[0] == pytest.approx(1.5 * 1 + 500 * 0.01)
    assert closed.received.tolist() == [False, True]
    assert closed.virtual_seconds == 5


def test_a_round_that_misses_its_goal_closes_when_nobody_is_on_the_way():
    closed = close_round(trips_of([6, 1]), Pace(goal=2), np.array([0.9, STAYS]))
    assert closed.outcomes == ("dropped", "ok")
    assert closed.virtual_seconds == 9


def test_who_would_leave_after_the_close_is_late():
    closed = close_round(trips_of([6, 1]), Pace(goal=1), np.array([0.9, STAYS]))
    assert (closed.outcomes, closed.virtual_seconds) == (("late", "ok"), 5)


def test_a_client_that_does_not_fit_fails_at_its_first_step():
    closed = close_round(trips_of([6, 1], fits=[False, True]), Pace())
    assert closed.outcomes == ("oom", "ok")
    assert closed.client_seconds.tolist() == [2, 5]
    assert (closed.down_bytes[0], closed.up_bytes[0]) == (500, 0)
    assert closed.joules[0] == pytest.approx(2 * 1 + 1000 * 0.01)


def test_a_client_that_leaves_before_its_first_step_is_dropped_and_not_out_of_memory():
    closed = close_round(trips_of([6], fits=[False]), Pace(), np.array([0.1]))
    assert (closed.outcomes, closed.virtual_seconds) == (("dropped",), 1)


def test_a_client_that_would_leave_after_running_out_of_memory_is_out_of_memory():
    # It fails at second 2 and would have left at second 9 of 10.
    closed = close_round(trips_of([6], fits=[False]), Pace(), np.array([0.9]))
    assert (closed.outcomes, closed.virtual_seconds) == (("oom",), 2)


@pytest.mark.parametrize("pace", [Pace(), Pace(goal=2, deadline_seconds=5.0)])
def test_a_round_that_asks_nobody_closes_at_once(pace):
    closed = close_round(trips_of([]), pace, draw_dropouts(0, 1, np.arange(0), np.zeros(0)))
    assert (closed.outcomes, closed.virtual_seconds) == ((), 0)


def test_if_everybody_drops_the_round_closes_with_nobody():
    closed = close_round(trips_of([6, 1]), Pace(deadline_seconds=100), np.array([0.5, 0.5]))
    assert (closed.outcomes, closed.virtual_seconds) == (("dropped", "dropped"), 5)


def test_a_concurrency_below_the_number_of_clients_is_refused():
    with pytest.raises(ConfigError, match="concurrency = 2, but the round asks 3 clients"):
        close_round(trips_of([1, 2, 3]), Pace(concurrency=2))


ROUNDS = st.tuples(
    st.lists(st.integers(0, 50), min_size=1, max_size=7),
    st.none() | st.integers(1, 8),
    st.none() | st.integers(1, 60),
    st.randoms(use_true_random=False),
)


def drawn(example):
    compute, goal, deadline, random = example
    fits = [random.random() < 0.8 for _ in compute]
    leaves = np.array([random.choice([STAYS, random.random()]) for _ in compute])
    return trips_of(compute, fits=fits), Pace(goal=goal, deadline_seconds=deadline), leaves


@settings(max_examples=80, deadline=None)
@given(ROUNDS)
def test_nobody_is_charged_more_than_the_whole_trip_and_who_is_ok_is_charged_its_price(example):
    trips, pace, leaves = drawn(example)
    closed = close_round(trips, pace, leaves)
    whole = price_trips(
        trips.device,
        compute_seconds=trips.compute_seconds,
        up_bytes=trips.up_bytes,
        down_bytes=trips.down_bytes,
        provision_bytes=trips.provision_bytes,
    )
    for name in ("up_bytes", "down_bytes", "provision_bytes", "joules"):
        assert (getattr(closed, name) <= getattr(whole, name) * (1 + 1e-12)).all()
    ok = np.array(closed.outcomes) == "ok"
    assert closed.joules[ok] == pytest.approx(whole.joules[ok])
    assert closed.client_seconds[ok] == pytest.approx(whole.virtual_seconds[ok])
    assert closed.up_bytes[ok].tolist() == whole.up_bytes[ok].tolist()
    assert (closed.client_seconds <= closed.virtual_seconds).all()


@settings(max_examples=80, deadline=None)
@given(ROUNDS)
def test_a_round_keeps_its_goal_and_its_deadline(example):
    trips, pace, leaves = drawn(example)
    closed = close_round(trips, pace, leaves)
    if pace.goal is not None:
        assert closed.outcomes.count("ok") <= pace.goal
    if pace.deadline_seconds is not None:
        assert closed.virtual_seconds <= pace.deadline_seconds


@settings(max_examples=80, deadline=None)
@given(ROUNDS)
def test_the_order_of_clients_does_not_matter(example):
    trips, pace, leaves = drawn(example)
    order = np.random.default_rng(len(leaves)).permutation(len(leaves))
    straight, shuffled = (
        close_round(trips, pace, leaves),
        close_round(take(trips, order), pace, leaves[order]),
    )
    assert shuffled.outcomes == tuple(straight.outcomes[i] for i in order)
    assert shuffled.joules.tolist() == straight.joules[order].tolist()
    assert shuffled.virtual_seconds == straight.virtual_seconds


def test_a_client_with_availability_0_7_leaves_in_three_rounds_of_ten():
    ids = np.arange(4000)
    leaves = draw_dropouts(0, 1, ids, np.full(4000, 0.7))
    # The standard deviation of the share is 0.0072.
    assert np.isfinite(leaves).mean() == pytest.approx(0.3, abs=0.03)
    assert leaves[np.isfinite(leaves)].mean() == pytest.approx(0.5, abs=0.05)


def test_who_is_always_there_never_leaves_and_who_never_is_always_does():
    leaves = draw_dropouts(0, 1, np.arange(50), np.repeat([1.0, 0.0], 25))
    assert np.isinf(leaves[:25]).all()
    assert np.isfinite(leaves[25:]).all()


def test_a_draw_depends_on_run_round_and_client_alone():
    half = np.full(40, 0.5)
    leaves = draw_dropouts(0, 1, np.arange(40), half)
    assert draw_dropouts(0, 1, np.arange(39, -1, -1), half)[::-1].tolist() == leaves.tolist()
    assert draw_dropouts(0, 2, np.arange(40), half).tolist() != leaves.tolist()
    assert draw_dropouts(1, 1, np.arange(40), half).tolist() != leaves.tolist()


def test_who_is_online_is_who_does_not_leave():
    ids, half = np.arange(200), np.full(200, 0.5)
    online = draw_online(0, 1, ids, half)
    assert online.tolist() == np.isinf(draw_dropouts(0, 1, ids, half)).tolist()
    assert 60 < online.sum() < 140


def test_trips_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        trips_of([1]).up_bytes = np.array([0])


# Under a cut.

SERVER = VirtualServer(
    num_shards=2,
    flops_per_s=1.0,
    memory_bytes=100,
    interconnect_bps=1e9,
    watts=10.0,
    block_bytes=(1, 1),
)


def riding_trips(forward_seconds, *, steps=None, fits=None):
    """Riders of one step: 500 bytes up in 2 s, 3 s on the server, 1000 down in 2 s, 4 s of backward.

    With 0 steps a client has no cut and computes for its forward seconds.
    """
    count = len(forward_seconds)
    steps = np.ones(count, np.int64) if steps is None else np.array(steps)
    riders = Riders(
        num_steps=steps,
        num_fresh=steps,
        forward_seconds=steps * np.array(forward_seconds, float),
        turn_seconds=0.0 * steps,
        backward_seconds=4.0 * steps,
        fresh_up_bytes=500 * steps,
        fresh_turn_up_bytes=0 * steps,
        later_up_bytes=0 * steps,
        down_bytes=1000 * steps,
        turn_down_bytes=0 * steps,
        up_messages=steps,
        down_messages=steps,
        server_flops=6 * steps,
        first_block=0 * steps,
        blind=0 * steps,
    )
    compute = np.where(steps > 0, riders.compute_seconds, forward_seconds)
    return dataclasses.replace(trips_of(compute, fits=fits), riders=riders, server=SERVER)


def test_riders_share_a_server_and_others_do_not_wait_for_it():
    # Received at 2; aboard at 6 and 7. The first sweep returns at 9, the second at 12; six seconds later
    # backward is done, two later the update is there. The third has no cut: 2 + 1 + 2.
    closed = close_round(riding_trips([2, 3, 1], steps=[1, 1, 0]), Pace())
    assert closed.outcomes == ("ok", "ok", "ok")
    assert closed.client_seconds.tolist() == [17, 20, 5]
    assert closed.waiting_seconds.tolist() == [3, 5, 0]
    # Two seconds of a cut's 17 and 20 go up over it, and two come down.
    assert closed.receive_seconds.tolist() == [2, 2, 2]
    assert closed.compute_seconds.tolist() == [6, 7, 1]
    assert closed.send_seconds.tolist() == [2, 2, 2]
    assert closed.boundary_up_bytes.tolist() == [500, 500, 0]
    assert closed.boundary_down_bytes.tolist() == [1000, 1000, 0]
    assert closed.num_messages.tolist() == [2, 2, 0]
    # 6 s at 5 W, the other 11 of 17 s at 1 W, 3000 bytes at 10 mJ.
    assert closed.joules[0] == pytest.approx(30 + 11 + 30)
    # Two sweeps of 3 s, two shards of 10 W.
    assert (closed.server_seconds, closed.server_joules) == (6, 120)


def test_a_rider_called_off_is_charged_what_crossed_until_then():
    # At 10 the first sweep's answer has paid its round trip and no byte; the second client rides since 9.
    closed = close_round(riding_trips([2, 3]), Pace(deadline_seconds=10))
    assert closed.outcomes == ("late", "late")
    assert closed.boundary_up_bytes.tolist() == [500, 500]
    assert closed.boundary_down_bytes.tolist() == [0, 0]
    assert closed.waiting_seconds.tolist() == [3, 3]
    assert closed.compute_seconds.tolist() == [2, 3]
    assert closed.send_seconds.tolist() == [0, 0]
    assert closed.num_messages.tolist() == [1, 1]
    assert closed.joules == pytest.approx([2 * 5 + 8 + 15, 3 * 5 + 7 + 15])
    assert closed.server_seconds == 4


def test_a_rider_that_leaves_before_it_boards_leaves_its_place_to_others():
    # It leaves at 5 of 17 seconds, so the other rides at 7 instead of 9.
    closed = close_round(riding_trips([2, 3]), Pace(), np.array([5 / 17, STAYS]))
    assert closed.outcomes == ("dropped", "ok")
    assert closed.client_seconds == pytest.approx([5, 18])
    assert closed.boundary_up_bytes.tolist() == [0, 500]


def test_a_rider_out_of_memory_never_boards():
    closed = close_round(riding_trips([2, 3], fits=[False, True]), Pace())
    assert closed.outcomes == ("oom", "ok")
    assert closed.client_seconds.tolist() == [2, 18]
    assert closed.joules[0] == pytest.approx(2 * 1 + 1000 * 0.01)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), min_size=1, max_size=6), ROUNDS)
def test_with_riders_too_nobody_is_charged_more_than_everything_and_the_order_does_not_matter(
    clients, example
):
    _, goal, deadline, random = example
    forward, steps = zip(*clients, strict=True)
    trips = riding_trips(forward, steps=steps, fits=[random.random() < 0.8 for _ in clients])
    pace = Pace(goal=goal, deadline_seconds=deadline)
    leaves = np.array([random.choice([STAYS, random.random()]) for _ in clients])
    closed = close_round(trips, pace, leaves)
    for name in ("boundary_up_bytes", "boundary_down_bytes", "num_messages"):
        whole = (
            np.array(steps) * {"boundary_up_bytes": 500, "boundary_down_bytes": 1000, "num_messages": 2}[name]
        )
        assert (getattr(closed, name) <= whole).all()
        ok = np.array(closed.outcomes) == "ok"
        assert getattr(closed, name)[ok].tolist() == whole[ok].tolist()
    phases = closed.receive_seconds + closed.compute_seconds + closed.waiting_seconds + closed.send_seconds
    assert (phases <= closed.client_seconds * (1 + 1e-12)).all()
    whole_models = np.array(steps) == 0
    assert phases[whole_models] == pytest.approx(closed.client_seconds[whole_models])
    assert (closed.client_seconds <= closed.virtual_seconds).all()
    order = np.random.default_rng(len(leaves)).permutation(len(leaves))
    shuffled = close_round(take(trips, order), pace, leaves[order])
    assert shuffled.outcomes == tuple(closed.outcomes[i] for i in order)
    assert shuffled.joules.tolist() == closed.joules[order].tolist()
