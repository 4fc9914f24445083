"""Sweeps worked out by hand, then laws.

Links here take no time unless said, so a step is forward, sweep, backward; the server does one FLOP a second.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.riding import spent_riding
from fedray.timetable import Travellers, timetable
from travel import INF, ride_seconds, server_of, travellers_of


def times(table):
    return [(sweep.start_seconds, sweep.end_seconds, sweep.aboard) for sweep in table.sweeps]


# Worked by hand.


def test_two_clients_alike_ride_together():
    # Forward to 1, one sweep of 2 x 2 FLOPs to 5, backward to 6; and again.
    table = timetable(server_of(), travellers_of([1, 1], backward=1, flops=2))
    assert times(table) == [(1, 5, (0, 1)), (7, 11, (0, 1))]
    assert table.finish_seconds.tolist() == [12, 12]
    assert [ends.tolist() for ends in table.step_ends] == [[5, 11], [5, 11]]


def test_who_misses_a_sweep_takes_the_next():
    # Client 0 leaves alone at 1. Client 1 boards at 2 and waits until 4, when the server is free; client 0
    # is back at 5, while client 1 rides until 7; then both wait for no one in turn.
    table = timetable(server_of(), travellers_of([1, 2], flops=3))
    assert times(table) == [(1, 4, (0,)), (4, 7, (1,)), (7, 10, (0,)), (10, 13, (1,))]
    assert table.finish_seconds.tolist() == [10, 13]


def test_three_unlike_clients_meet_where_their_seconds_do():
    # Forward 1, 2 and 6; a FLOP each. 0 rides 1 to 2, 1 rides 2 to 3, 0 again 3 to 4 (done), 1 boards at 5
    # and rides to 6 (done), just as 2 boards; 2 rides 6 to 7, is back at 13 and rides to 14.
    table = timetable(server_of(), travellers_of([1, 2, 6]))
    assert times(table) == [
        (1, 2, (0,)),
        (2, 3, (1,)),
        (3, 4, (0,)),
        (5, 6, (1,)),
        (6, 7, (2,)),
        (13, 14, (2,)),
    ]
    assert table.finish_seconds.tolist() == [4, 6, 14]


def test_a_sweep_waits_for_min_riders_while_enough_are_left_in_the_round():
    # Two ride together at 4. Client 2 needs no second step, so at 10 client 1 is the only one left.
    server = server_of(min_riders=2, window_seconds=100.0)
    table = timetable(server, travellers_of([1, 4], steps=[1, 2], flops=1))
    assert times(table) == [(4, 6, (0, 1)), (10, 11, (1,))]


def test_a_window_opens_with_the_first_boarding_and_closes_on_whoever_is_there():
    # 0 boards at 1, 1 at 3, 2 at 9: the window of 5 closes at 6.
    server = server_of(min_riders=3, window_seconds=5.0)
    table = timetable(server, travellers_of([1, 3, 9], steps=1))
    assert times(table) == [(6, 8, (0, 1)), (9, 10, (2,))]


def test_a_window_that_closed_while_the_server_was_away_lets_the_sweep_leave_at_its_return():
    # 0 and 1 leave at 1 for 10 FLOPs each. 2 boards at 2; its window of 5 is over when they return at 21.
    # So it leaves at once, and the two others, back at 22, wait for each other or the window.
    server = server_of(min_riders=2, window_seconds=5.0)
    table = timetable(server, travellers_of([1, 1, 2], flops=[10, 10, 1], steps=[2, 2, 1]))
    assert times(table) == [(1, 21, (0, 1)), (21, 22, (2,)), (22, 42, (0, 1))]


def test_a_boarding_at_the_moment_of_leaving_is_aboard():
    server = server_of(min_riders=3, window_seconds=2.0)
    table = timetable(server, travellers_of([1, 3, 9], steps=1))
    assert times(table)[0] == (3, 5, (0, 1))


def test_a_queue_serves_one_after_the_other_as_they_came():
    # Boarding at 2, 1 and 1: of the two at 1 the smaller client id goes first.
    server = server_of(order="queue")
    who = travellers_of([2, 1, 1], steps=1, flops=3, client_ids=[5, 9, 7])
    assert times(timetable(server, who)) == [(1, 4, (2,)), (4, 7, (1,)), (7, 10, (0,))]


def test_a_sweep_gathers_from_the_lowest_cut_aboard_to_the_top():
    # Two shards and four blocks of 3 bytes: half of them, up and down, at a byte a second.
    server = server_of(num_shards=2, block_bytes=(3, 3, 3, 3))
    table = timetable(server, travellers_of([1, 1], steps=1, first_block=[3, 1]))
    assert times(table) == [(1, 10, (0, 1))]


def test_who_leaves_makes_room_and_nobody_waits_for_it():
    # Client 1 would board at 8 and leaves at 5: client 0, waiting for a second rider, goes at that moment.
    server = server_of(min_riders=2, window_seconds=100.0)
    table = timetable(server, travellers_of([1, 8], steps=1, leave=[INF, 5]))
    assert times(table) == [(5, 6, (0,))]
    assert table.finish_seconds.tolist() == [6, INF]


def test_who_leaves_aboard_is_carried_to_the_end_and_does_not_come_back():
    table = timetable(server_of(), travellers_of([1, 1], flops=2, leave=[3, INF]))
    assert times(table) == [(1, 5, (0, 1)), (6, 8, (1,))]


def test_with_a_local_loss_the_client_goes_on_and_its_steps_queue_up():
    # It sends at 1, 2 and 3, and each sweep takes 4.
    who = travellers_of([1], flops=4, steps=3, down_messages=0)
    table = timetable(server_of(), who)
    assert times(table) == [(1, 5, (0,)), (5, 9, (0,)), (9, 13, (0,))]
    assert table.finish_seconds.tolist() == [13]
    # Computing for three seconds, then waiting for ten.
    spent = spent_riding(table, who, np.array([13.0]))
    assert (spent.compute_seconds.tolist(), spent.waiting_seconds.tolist()) == ([3], [10])


def test_where_hidden_states_are_kept_the_server_goes_on_alone():
    who = travellers_of([1], flops=2, steps=4, fresh=2, down_messages=0)
    table = timetable(server_of(), who)
    assert times(table) == [(1, 3, (0,)), (3, 5, (0,)), (5, 7, (0,)), (7, 9, (0,))]
    assert spent_riding(table, who, np.array([9.0])).compute_seconds.tolist() == [2]


def test_at_the_top_a_sweep_waits_for_tails_and_then_comes_down_for_everybody():
    # Up from 1 to 5. Client 0 is in its tail until 8, then down until 12; backward ends at 13.
    who = travellers_of([1, 1], backward=1, steps=1, flops=4, turn=[3, 0], up_messages=[2, 1])
    table = timetable(server_of(), who)
    assert times(table) == [(1, 12, (0, 1))]
    assert [(sweep.top_seconds, sweep.down_seconds) for sweep in table.sweeps] == [(5, 8)]
    assert table.finish_seconds.tolist() == [13, 13]
    spent = spent_riding(table, who, np.array([13.0, 13.0]))
    assert spent.waiting_seconds.tolist() == [8, 11]
    assert [table.busy_seconds(moment) for moment in (1, 4, 7, 9, 20)] == [0, 3, 4, 5, 8]


def test_nobody_waits_for_the_tail_of_who_has_left():
    who = travellers_of([1, 1], steps=1, flops=4, turn=[3, 0], up_messages=[2, 1], leave=[6, INF])
    table = timetable(server_of(), who)
    assert [(sweep.top_seconds, sweep.down_seconds) for sweep in table.sweeps] == [(5, 6)]
    assert table.finish_seconds.tolist() == [INF, 10]


def test_over_a_frozen_bottom_a_later_step_is_the_tail_alone():
    # Forward to 3, to the top at 4, the tail until 6, down until 7; then up at once, 8, 10 and 11.
    who = travellers_of([3], steps=2, fresh=1, flops=2, turn=2, up_messages=2)
    table = timetable(server_of(), who)
    assert times(table) == [(3, 7, (0,)), (7, 11, (0,))]
    assert spent_riding(table, who, np.array([11.0])).compute_seconds.tolist() == [3 + 2 * 2]
    assert who.riders.seconds_alone(who.device, np.array([2.0])).tolist() == [11]


def test_a_queue_has_one_tail_at_a_time():
    who = travellers_of([1, 1], steps=1, flops=2, turn=3, up_messages=2)
    assert times(timetable(server_of(order="queue"), who)) == [(1, 6, (0,)), (6, 11, (1,))]


# What is spent until some moment.


def test_a_moment_in_every_part_of_a_step():
    # One step: forward 2, up 1 + 4 s, sweep 3, down 1 + 2 s, backward 4.
    who = travellers_of([2], backward=4, steps=1, flops=3, up_bytes=4, down_bytes=2, rtt_seconds=1.0)
    table = timetable(server_of(), who)
    assert times(table) == [(7, 10, (0,))]
    assert table.finish_seconds.tolist() == [17]
    moments = {
        1: (1, 0, 0, 0, 0),
        3: (2, 0, 0, 0, 0),
        5: (2, 0, 2, 0, 0),
        8: (2, 1, 4, 0, 1),
        12: (2, 3, 4, 1, 1),
        15: (4, 3, 4, 2, 2),
        17: (6, 3, 4, 2, 2),
        30: (6, 3, 4, 2, 2),
    }
    for moment, expected in moments.items():
        spent = spent_riding(table, who, np.array([float(moment)]))
        assert tuple(getattr(spent, f.name)[0] for f in dataclasses.fields(spent)) == expected, moment


def test_a_moment_in_every_part_of_a_step_that_turns_at_a_tail():
    # Forward to 2, up to 7, sweep to the top at 9, down 1 + 2 s, the tail 12 to 15, up 1 + 1 s, sweep 17 to
    # 19, down 1 + 2 s, backward 22 to 26.
    who = travellers_of(
        [2], turn=3, backward=4, steps=1, flops=4, up_bytes=5, turn_up_bytes=1, down_bytes=4,
        turn_down_bytes=2, up_messages=2, down_messages=2, rtt_seconds=1.0,
    )  # fmt: skip
    table = timetable(server_of(), who)
    assert table.finish_seconds.tolist() == [26]
    moments = {
        1: (1, 0, 0, 0, 0),
        5: (2, 0, 2, 0, 0),
        8: (2, 1, 4, 0, 1),
        11: (2, 2, 4, 1, 1),
        13: (3, 2, 4, 2, 2),
        16: (5, 2, 4, 2, 2),
        18: (5, 3, 5, 2, 3),
        21: (5, 4, 5, 3, 3),
        23: (6, 4, 5, 4, 4),
        26: (9, 4, 5, 4, 4),
    }
    for moment, expected in moments.items():
        spent = spent_riding(table, who, np.array([float(moment)]))
        assert tuple(getattr(spent, f.name)[0] for f in dataclasses.fields(spent)) == expected, moment


def test_a_sweep_may_lose_to_a_queue_where_the_server_waits_for_its_arithmetic():
    # A sweep of both takes twice as long, so neither computes while the other is served: 6 s against 5.
    who = travellers_of([0, 0], backward=1)
    swept, queued = (timetable(server_of(order=order), who) for order in ("sweep", "queue"))
    assert swept.finish_seconds.tolist() == [6, 6]
    assert queued.finish_seconds.tolist() == [4, 5]


def test_a_sweep_beats_a_queue_where_the_server_waits_for_its_gathering():
    # Eight bytes gathered at a byte a second, whoever rides.
    server = {"num_shards": 2, "block_bytes": (2, 2, 2, 2)}
    who = travellers_of([0, 0, 0], backward=1)
    swept, queued = (timetable(server_of(order=order, **server), who) for order in ("sweep", "queue"))
    assert swept.finish_seconds.tolist() == [18, 18, 18]
    assert queued.finish_seconds.tolist() == [33, 41, 49]


# Laws.

CLIENTS = st.lists(
    st.tuples(
        st.integers(0, 9),  # forward
        st.integers(0, 9),  # backward
        st.integers(1, 4),  # steps
        st.integers(0, 9),  # flops
        st.integers(0, 9),  # start
        st.integers(0, 6),  # bytes up and down
        st.integers(0, 1),  # messages down
        st.integers(0, 3),  # cut
        st.integers(0, 5),  # seconds in a tail, none if 0
        st.integers(0, 1),  # a black box, without a tail and with a message down
    ),
    min_size=1,
    max_size=6,
)
SERVERS = st.fixed_dictionaries(
    {
        "num_shards": st.integers(1, 3),
        "order": st.sampled_from(["sweep", "queue"]),
        "min_riders": st.integers(1, 4),
        "window_seconds": st.integers(0, 20).map(float),
    }
)


def drawn(clients, leave=INF):
    forward, backward, steps, flops, start, crossing, messages, cut, turn, blind = map(
        np.array, zip(*clients, strict=True)
    )
    tail = (turn > 0).astype(int)
    return travellers_of(
        forward,
        backward=backward,
        steps=steps,
        flops=flops,
        start=start,
        leave=leave,
        turn=turn,
        up_bytes=crossing,
        turn_up_bytes=crossing // 2 * tail,
        down_bytes=crossing * np.maximum(messages, tail),
        turn_down_bytes=np.where(messages, crossing // 2, crossing) * tail,
        up_messages=1 + tail,
        down_messages=messages + tail,
        first_block=cut,
        blind=blind * messages * (1 - tail),
        rtt_seconds=0.5,
    )


def alone_seconds(server, riders):
    """What a sweep for each takes until it has its answer."""
    kinds = zip(riders.server_flops.tolist(), riders.first_block.tolist(), riders.blind.tolist(), strict=True)
    return np.array([ride_seconds(server, flops, cut, blind=bool(b)) for flops, cut, b in kinds])


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS)
def test_nobody_is_done_before_its_price_on_an_idle_server(clients, facts):
    server, who = server_of(**facts), drawn(clients)
    table = timetable(server, who)
    price = who.riders.seconds_alone(who.device, alone_seconds(server, who.riders))
    assert (table.finish_seconds - who.start_seconds >= price - 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(CLIENTS, st.sampled_from(["sweep", "queue"]), st.integers(1, 3))
def test_a_client_that_rides_alone_takes_exactly_its_price(clients, order, num_shards):
    server, who = server_of(order=order, num_shards=num_shards), drawn(clients[:1])
    table = timetable(server, who)
    price = who.riders.seconds_alone(who.device, alone_seconds(server, who.riders))
    assert table.finish_seconds - who.start_seconds == pytest.approx(price)


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS)
def test_every_step_is_served_once_in_order_and_sweeps_never_overlap(clients, facts):
    table = timetable(server_of(**facts), who := drawn(clients))
    for client, steps in enumerate(who.riders.num_steps):
        rides = [sweep for sweep in table.sweeps if client in sweep.aboard]
        assert len(rides) == steps
        for sweep, end in zip(rides, table.step_ends[client].tolist(), strict=True):
            blind = who.riders.blind[client]
            assert sweep.start_seconds <= end <= sweep.top_seconds if blind else end == sweep.end_seconds
    for one, other in zip(table.sweeps, table.sweeps[1:], strict=False):
        assert one.end_seconds <= other.start_seconds
    if facts["order"] == "queue":
        assert all(len(sweep.aboard) == 1 for sweep in table.sweeps)


@settings(max_examples=60, deadline=None)
@given(CLIENTS, SERVERS, st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(clients, facts, random):
    who = drawn(clients)
    order = np.array(random.sample(range(len(clients)), len(clients)))
    turned = Travellers(
        client_ids=who.client_ids[order],
        riders=who.riders.take(order),
        device=who.device.take(order),
        start_seconds=who.start_seconds[order],
        leave_seconds=who.leave_seconds[order],
    )
    straight, shuffled = (timetable(server_of(**facts), each) for each in (who, turned))
    assert shuffled.finish_seconds.tolist() == straight.finish_seconds[order].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4), st.integers(0, 4))
def test_clients_alike_never_gain_by_queueing_where_a_sweep_takes_as_long_for_all(
    count, forward, backward, steps, flops
):
    # Four bytes gathered take 4 s or more than one client's FLOPs; all ride for the price of one.
    server = {"num_shards": 2, "block_bytes": (5, 5, 5, 5), "flops_per_s": 1.0}
    who = travellers_of([forward] * count, backward=backward, steps=steps, flops=flops)
    swept, queued = (timetable(server_of(order=order, **server), who) for order in ("sweep", "queue"))
    assert (swept.finish_seconds <= queued.finish_seconds).all()


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS, st.lists(st.integers(0, 60), min_size=6, max_size=6), st.integers(0, 80))
def test_what_is_spent_adds_up_to_the_seconds_until_then(clients, facts, leaves, moment):
    leave = np.where(np.array(leaves) < 40, np.array(leaves, float), INF)[: len(clients)]
    who = drawn(clients, leave)
    table = timetable(server_of(**facts), who)
    until = np.minimum(np.minimum(moment, leave), table.finish_seconds)
    until = np.maximum(until, who.start_seconds)
    spent = spent_riding(table, who, until)
    whole = who.riders
    for now, all_of_it in (
        (spent.compute_seconds, whole.compute_seconds),
        (spent.up_bytes, whole.up_bytes),
        (spent.down_bytes, whole.down_bytes),
        (spent.num_messages, whole.num_messages),
    ):
        assert (now <= all_of_it + 1e-9).all()
    busy = spent.compute_seconds + spent.waiting_seconds
    assert (busy <= until - who.start_seconds + 1e-9).all()
    done = until >= table.finish_seconds
    ups, downs = (whole.first_up, whole.fresh_turn_up), (whole.turn_down, whole.last_down)
    links = sum(whole.num_fresh * leg.up_seconds(who.device) for leg in ups)
    links = links + sum(whole.num_steps * leg.down_seconds(who.device) for leg in downs)
    assert (busy + links)[done] == pytest.approx((until - who.start_seconds)[done])
