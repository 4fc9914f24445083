"""Trips under cuts where rounds overlap: two clients worked out by hand, then laws.

A byte crosses a link in a second and the server does a FLOP in one, so a trip is a second to receive, steps
of forward, sweep and backward, and a second to send.
"""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.battery import Batteries
from fedray.clock import close_round
from fedray.in_transit import InTransit, RiddenTrip
from fedray.policy import Pace
from fedray.timetable import Travellers, timetable
from fedray.trips import Trips
from test_timetable import CLIENTS, SERVERS, drawn
from travel import INF, server_of, travellers_of


def trips_of(who, down_bytes=1, up_bytes=1):
    """Trips whose rides are those of these travellers; a byte received, and one sent."""
    count = len(who.client_ids)
    return Trips(
        client_ids=who.client_ids,
        device=who.device,
        fits=np.ones(count, np.bool_),
        compute_seconds=who.riders.compute_seconds,
        up_bytes=np.full(count, up_bytes),
        down_bytes=np.broadcast_to(down_bytes, count).copy(),
        provision_bytes=np.zeros(count, np.int64),
        riders=who.riders,
    )


def ride(who, place=0, begins=0.0, **trip):
    leave = float(who.leave_seconds[place])
    one = trips_of(who, **trip).take(np.array([place]))
    return RiddenTrip(begins=begins, trip=one, leave_seconds=leave)


def landed(aboard):
    """The next that ends, by client, when, and what it came to."""
    ending = aboard.next_ending(None)
    aboard.land(ending)
    return ending.client_id, ending.end_seconds, ending.closed


# Client 0, alone: received at 1, forward to 3, on the server to 7, backward to 8; forward to 10, on the
# server to 14, backward to 15, sent at 16.
PAIR = travellers_of([2, 2], backward=1, steps=2, flops=4)


def test_a_trip_alone_takes_what_it_takes_in_a_round():
    aboard = InTransit.of(server_of())
    aboard.come(ride(PAIR))
    assert aboard.next_ending(None).end_seconds == 16
    assert aboard.count(10.0) == 4
    assert landed(aboard)[:2] == (0, 16)
    assert aboard.count(16.0) == 4
    assert aboard.next_ending(None) is None


def test_who_sets_out_while_another_rides_delays_it_from_then_on():
    # Client 1 sets out at 6, boards at 9 and rides to 13. Client 0 boards at 10, waits, and rides to 17: it
    # is there at 19. Client 1 boards again at 16 and rides from 17 to 21: there at 23.
    aboard = InTransit.of(server_of())
    aboard.come(ride(PAIR))
    assert aboard.next_ending(None).end_seconds == 16
    aboard.come(ride(PAIR, 1, begins=6.0))
    # Until 16 three sweeps, the last of them for three of its four seconds; to 23 its last, and one more.
    assert aboard.count(16.0) == 4 + 4 + 3
    client, end, closed = landed(aboard)
    assert (client, end) == (0, 19)
    assert (closed.outcomes, closed.client_seconds.tolist()) == (("ok",), [19])
    assert closed.waiting_seconds.tolist() == [4 + 7]
    assert (closed.compute_seconds.tolist(), closed.send_seconds.tolist()) == ([6], [1])
    # A watt all the time, and a joule for each of two bytes.
    assert closed.joules.tolist() == [19 + 2]
    client, end, closed = landed(aboard)
    assert (client, end) == (1, 23)
    assert (closed.client_seconds.tolist(), closed.waiting_seconds.tolist()) == ([17], [4 + 5])
    assert aboard.count(23.0) == 1 + 4


def test_who_is_called_off_is_charged_until_then():
    aboard = InTransit.of(server_of())
    aboard.come(ride(PAIR))
    aboard.come(ride(PAIR, 1, begins=6.0))
    closed = dict(aboard.until(12.0))
    assert [one.outcomes for one in closed.values()] == [("late",), ("late",)]
    # Client 0 has waited 4 and then from 10 on; client 1 rides since 9.
    assert [one.waiting_seconds[0] for one in closed.values()] == [4 + 2, 3]
    assert [one.client_seconds[0] for one in closed.values()] == [12, 6]
    assert [one.compute_seconds[0] for one in closed.values()] == [5, 2]


def test_a_sweep_waits_for_who_is_under_way_and_for_nobody_else():
    # Client 0 boards at 2 alone and leaves at once; when it boards again at 4, client 1 is on its way since
    # 3, boards at 9, and both ride.
    server = server_of(min_riders=2, window_seconds=100.0)
    who = travellers_of([1, 5], steps=[2, 1])
    aboard = InTransit.of(server)
    aboard.come(ride(who))
    assert aboard.next_ending(None).end_seconds == 6
    aboard.come(ride(who, 1, begins=3.0))
    assert [landed(aboard)[:2] for _ in range(2)] == [(0, 12), (1, 12)]
    assert aboard.next_ending(None) is None


def test_of_equal_ends_the_smaller_client_id_lands_first_whoever_rode_first():
    # Client 9 rides from 2 to 3 and sends for four seconds; client 4 rides from 6 to 7 and sends nothing.
    who = travellers_of([1, 5], steps=1, client_ids=[9, 4])
    aboard = InTransit.of(server_of())
    aboard.come(ride(who, 0, up_bytes=4))
    aboard.come(ride(who, 1, up_bytes=0))
    assert [landed(aboard)[:2] for _ in range(2)] == [(4, 7), (9, 7)]


def test_who_leaves_makes_room_for_the_others():
    # Without client 1, which leaves 2 s after it set out at 6, client 0 is done as if alone.
    who = travellers_of([2, 2], backward=1, steps=2, flops=4, leave=[INF, 2])
    aboard = InTransit.of(server_of())
    aboard.come(ride(who))
    aboard.come(ride(who, 1, begins=6.0))
    client, end, closed = landed(aboard)
    assert (client, end, closed.outcomes) == (1, 8, ("dropped",))
    assert landed(aboard)[:2] == (0, 16)


def test_a_battery_that_would_have_lasted_runs_empty_over_who_comes():
    # A watt all the time and a joule a byte: alone client 0 is done at 16 with 18 J. As client 1 comes it is
    # not: at 17.5 it has spent 17.5 J and one for what it received.
    kept = Batteries(capacity_joules=np.array([18.5, INF]), charge_watts=np.zeros(2), sessions=None,
                     rows=np.arange(2))  # fmt: skip
    aboard = InTransit.of(server_of())
    aboard.come(dataclasses.replace(ride(PAIR), charge_joules=18.5))
    alone = aboard.next_ending(kept)
    assert (alone.end_seconds, alone.closed.charge_joules.tolist()) == (16, [0.5])
    aboard.come(ride(PAIR, 1, begins=6.0))
    ending = aboard.next_ending(kept)
    assert (ending.client_id, ending.end_seconds) == (0, pytest.approx(17.5))
    closed = ending.closed
    assert (closed.outcomes, closed.emptied.tolist(), closed.charge_joules.tolist()) == (
        ("dropped",),
        [True],
        [0],
    )
    aboard.land(ending)
    assert aboard.next_ending(kept).end_seconds == 23


def test_a_client_may_come_again_after_it_has_gone():
    # It leaves aboard its first sweep, which goes on to 7, and comes again meanwhile: it boards at 8.
    who = travellers_of([2], backward=1, steps=1, flops=4, leave=[5])
    aboard = InTransit.of(server_of())
    aboard.come(ride(who))
    assert landed(aboard)[:2] == (0, 5)
    again = travellers_of([2], backward=1, steps=1, flops=4)
    aboard.come(ride(again, begins=5.0))
    assert landed(aboard)[:2] == (0, 5 + 9)
    assert aboard.count(20.0) == 8


def test_nothing_is_kept_of_who_has_gone():
    # One who would have left at 1000, and one who leaves aboard a sweep that ends at 7.
    aboard, who = InTransit.of(server_of()), travellers_of([2, 2], steps=1, flops=2, leave=[1000, 5])
    aboard.come(ride(who))
    aboard.come(ride(who, 1))
    assert [landed(aboard)[:2] for _ in range(2)] == [(1, 5), (0, 8)]
    aboard.count(8.0)
    sweeps = aboard.facts()["sweeps"]
    assert [sweeps[kept] for kept in ("passengers", "over", "events", "waiting", "staying")] == [[]] * 5


def test_what_riders_look_like_as_they_set_out_counts_who_is_under_way():
    aboard = InTransit.of(server_of())
    aboard.come(ride(PAIR))
    second = trips_of(PAIR).take(np.array([1]))
    who = Travellers(
        client_ids=second.client_ids,
        riders=second.riders,
        device=second.device,
        start_seconds=second.receive_seconds,
        leave_seconds=np.array([INF]),
    )
    # At 22 backward is done, which is 16 s after it set out; the first client's own end is as it was.
    assert aboard.beside(6.0)(who).finish_seconds.tolist() == [16]
    assert aboard.next_ending(None).end_seconds == 16


# Laws.


def leaving(leaves, count):
    return np.where(np.array(leaves[:count]) < 40, np.array(leaves[:count], float), INF)


def reread(aboard, rides):
    """The same from a checkpoint."""
    facts = json.loads(json.dumps(aboard.facts()))
    trips = {one.client_id: json.loads(json.dumps(one.trip.facts())) for one in rides}
    again = {one.client_id: one for one in rides}
    for client, one in again.items():
        again[client] = RiddenTrip(
            begins=one.begins, trip=Trips.from_facts(trips[client]), leave_seconds=one.leave_seconds
        )
    return InTransit.from_facts(facts, again)


LEAVES = st.lists(st.integers(0, 60), min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS, LEAVES)
def test_clients_that_set_out_together_come_to_what_they_do_in_one_round(clients, facts, leaves):
    server, who = server_of(**facts), drawn(clients, leaving(leaves, len(clients)))
    trips = trips_of(who, down_bytes=who.start_seconds.astype(int))
    together = close_round(dataclasses.replace(trips, server=server), Pace(), None, who.leave_seconds)
    aboard = InTransit.of(server)
    rides = [ride(who, k, down_bytes=trips.down_bytes) for k in range(len(clients))]
    for one in rides:
        aboard.come(one)
    ends = []
    for _ in rides:
        aboard = reread(aboard, rides)
        client, end, closed = landed(aboard)
        ends.append((end, client))
        for name in ("outcomes", "client_seconds", "waiting_seconds", "joules", "up_bytes", "num_messages",
                     "boundary_up_bytes", "boundary_down_bytes", "compute_seconds"):  # fmt: skip
            assert getattr(closed, name)[0] == getattr(together, name)[client], name
    assert ends == sorted(ends)
    assert aboard.count(ends[-1][0]) == pytest.approx(together.server_seconds)


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS, LEAVES, st.lists(st.integers(0, 60), min_size=6, max_size=6))
def test_where_sweeps_wait_for_nobody_coming_later_is_starting_later(clients, facts, leaves, begins):
    # Then all can be told at once, for nobody minds who is yet to come.
    server = server_of(**{**facts, "min_riders": 1})
    who, begins = (
        drawn(clients, leaving(leaves, len(clients))),
        np.array(sorted(begins)[: len(clients)], float),
    )
    trips = trips_of(who)
    start = trips.receive_seconds + begins
    finish = timetable(server, Travellers(
        client_ids=who.client_ids, riders=who.riders, device=who.device, start_seconds=start,
        leave_seconds=who.leave_seconds + begins,
    )).finish_seconds  # fmt: skip
    expected = begins + np.minimum(who.leave_seconds, finish - begins + trips.send_seconds)
    rides = [ride(who, k, begins=float(begins[k])) for k in range(len(clients))]
    found = played(server, rides)
    assert {client: end for client, (end, _) in found.items()} == dict(enumerate(expected.tolist()))


@settings(max_examples=100, deadline=None)
@given(CLIENTS, SERVERS, LEAVES, st.lists(st.integers(0, 60), min_size=6, max_size=6))
def test_who_comes_later_changes_nothing_that_was_before(clients, facts, leaves, begins):
    server, who = server_of(**facts), drawn(clients, leaving(leaves, len(clients)))
    begins = sorted(begins)[: len(clients)]
    rides = [ride(who, k, begins=float(begins[k])) for k in range(len(clients))]
    everybody, earlier = played(server, rides), played(server, rides[:-1])
    for client, (end, closed) in earlier.items():
        if end <= begins[-1]:
            assert everybody[client][0] == end
            assert everybody[client][1].joules.tolist() == closed.joules.tolist()
            assert everybody[client][1].waiting_seconds.tolist() == closed.waiting_seconds.tolist()


def played(server, rides):
    """When each ends, and what it came to, by client: they set out in order, and land before others do."""
    aboard, ended, coming = InTransit.of(server), {}, list(rides)
    while coming or aboard.rides:
        ending = aboard.next_ending(None)
        if coming and (ending is None or coming[0].begins <= ending.end_seconds):
            aboard = reread(aboard, [one for one in rides if one.client_id not in ended])
            aboard.come(coming.pop(0))
            continue
        aboard.land(ending)
        ended[ending.client_id] = ending.end_seconds, ending.closed
    return ended
