"""The server's own link: shares and times worked by hand, then laws, then rounds that wait for it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.clock import close_round
from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.policy import Pace
from fedray.scene import set_scene
from fedray.shared_link import SharedLink, Transfers, fair_shares, transferred
from test_clock import take, trips_of
from tiny_run import merged

STAYS = np.inf


def over(capacity, starts, total_bytes, own_bps, leaves=None):
    count = len(starts)
    return transferred(
        Transfers(
            start_seconds=np.array(starts, float),
            total_bytes=np.array(total_bytes, np.int64),
            own_bps=np.broadcast_to(np.array(own_bps, float), count),
            leave_seconds=np.full(count, STAYS) if leaves is None else np.array(leaves, float),
        ),
        capacity,
    )


def test_who_cannot_take_an_even_share_leaves_the_rest_to_others():
    # An even share of 9 is 3: the first takes its 1, the second then its 4 of 8, the last what is left.
    assert fair_shares(np.array([1.0, 4.0, 10.0]), 9.0).tolist() == [1, 4, 4]
    assert fair_shares(np.array([5.0, 5.0, 10.0]), 9.0).tolist() == [3, 3, 3]
    assert fair_shares(np.array([1.0, 4.0, 10.0]), 15.0).tolist() == [1, 4, 10]


def test_two_share_a_link_from_when_the_second_comes_until_the_first_is_done():
    # 64 bits each at 64 bit/s: 32 bits by 0.5, then 32 bit/s each until 1.5; from then the second is alone.
    assert over(64, [0, 0.5], [8, 8], 64).finish_seconds.tolist() == [1.5, 2.0]


def test_who_leaves_makes_room_and_had_moved_its_part():
    # By 1.0 the second has 16 bits; the first has 16 left, and the whole link.
    gone = over(64, [0, 0.5], [8, 8], 64, [STAYS, 1.0])
    assert gone.finish_seconds.tolist() == [1.25, np.inf]
    assert gone.moved_bytes.tolist() == [8, 2]


def test_who_left_before_it_started_or_has_nothing_to_send_takes_nothing():
    found = over(8, [0, 2, 1, np.inf], [1, 9, 0, 9], 8, [STAYS, 1.5, STAYS, STAYS])
    assert found.finish_seconds.tolist() == [1, np.inf, 1, np.inf]
    assert found.moved_bytes.tolist() == [1, 0, 0, 0]


ROWS = st.tuples(st.floats(0, 9), st.integers(0, 400), st.floats(1, 500))
FLOWS = st.lists(ROWS, min_size=1, max_size=8).map(lambda rows: [list(c) for c in zip(*rows, strict=True)])


@given(FLOWS, st.floats(1, 2000))
def test_nobody_is_done_earlier_than_alone_and_the_link_carries_no_more_than_it_can(flows, capacity):
    starts, sizes, own = flows
    found = over(capacity, starts, sizes, own)
    alone = np.array(starts) + np.array(sizes) * 8 / np.array(own)
    assert (found.finish_seconds >= alone * (1 - 1e-9)).all()
    assert found.moved_bytes.tolist() == sizes
    # By the last end all bits have passed since the first start.
    span = found.finish_seconds.max() - min(starts)
    assert span * capacity >= sum(sizes) * 8 * (1 - 1e-9) - 1e-6


@given(FLOWS)
def test_a_link_that_is_never_short_changes_no_bit(flows):
    starts, sizes, own = flows
    found = over(sum(own) + 1, starts, sizes, own)
    assert found.finish_seconds.tolist() == (np.array(starts) + np.array(sizes) * 8 / np.array(own)).tolist()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.floats(1, 100))
def test_a_link_shorter_than_any_own_one_is_never_idle(sizes, capacity):
    found = over(capacity, [0.0] * len(sizes), sizes, 200.0)
    assert found.finish_seconds.max() == pytest.approx(sum(sizes) * 8 / capacity)
    # Of equal links the smaller is done no later.
    assert (np.diff(found.finish_seconds[np.argsort(sizes, kind="stable")]) >= -1e-9).all()


@given(FLOWS, st.floats(1, 500), st.randoms())
def test_the_order_of_clients_does_not_matter(flows, capacity, random):
    order = list(range(len(flows[0])))
    random.shuffle(order)
    mixed = [[column[k] for k in order] for column in flows]
    one, other = over(capacity, *flows), over(capacity, *mixed)
    assert other.finish_seconds == pytest.approx(one.finish_seconds[order], rel=1e-9)


def shares_by_pouring(own, capacity):
    """An even share again and again to those whose own link carries more."""
    rates, room, open_ = np.zeros(len(own)), capacity, list(range(len(own)))
    while open_ and room > 1e-12:
        even, room = room / len(open_), 0.0
        for k in list(open_):
            taken = min(even, own[k] - rates[k])
            rates[k] += taken
            room += even - taken
            if rates[k] >= own[k]:
                open_.remove(k)
    return rates


@given(st.lists(st.floats(1, 100), min_size=1, max_size=8), st.floats(1, 300))
def test_shares_are_those_of_pouring_the_rest_out_again(own, capacity):
    own = np.sort(own)
    assert fair_shares(own, capacity) == pytest.approx(shares_by_pouring(own, capacity), abs=1e-6)


def test_small_steps_of_time_come_to_the_same():
    random = np.random.default_rng(7)
    starts, own, sizes = random.uniform(0, 2, 6), random.uniform(20, 90, 6), random.integers(2, 20, 6)
    left, finish, now, step = sizes * 8.0, np.full(6, np.inf), 0.0, 2e-3
    while np.isinf(finish).any():
        here = np.flatnonzero((starts <= now) & np.isinf(finish))
        left[here] -= step * shares_by_pouring(own[here], 100.0)
        now += step
        finish[(left <= 0) & np.isinf(finish)] = now
    assert over(100.0, starts, sizes, own).finish_seconds == pytest.approx(finish, abs=0.02)


# Rounds.


def shared(compute_seconds, *, up=None, down=None, **columns):
    link = SharedLink(up_bps=up, down_bps=down)
    return dataclasses.replace(trips_of(compute_seconds, **columns), shared_link=link)


def test_a_round_waits_for_a_link_that_is_shared_both_ways():
    # 1000 bytes at 8000 bit/s took one second after the round trip, and take two; likewise 500 up at 4000.
    closed = close_round(shared([1, 1], up=4000, down=8000), Pace())
    assert closed.client_seconds.tolist() == [7, 7]
    assert closed.outcomes == ("ok", "ok")
    # Six seconds of waiting for links, one of computing, 1500 bytes.
    assert closed.joules.tolist() == pytest.approx([6 + 5 + 15] * 2)
    # Who computes longer sends alone: received at 3, computed at 4 and 9, sent one second after a round trip.
    assert close_round(shared([1, 6], up=4000, down=8000), Pace()).client_seconds.tolist() == [6, 11]
    assert close_round(shared([1, 6], down=8000), Pace()).client_seconds.tolist() == [6, 11]


def test_waste_on_a_shared_link_is_charged_as_far_as_it_had_come():
    # One second after the round trip each has 4000 bits, and after a second more the rest.
    closed = close_round(shared([6, 6], down=8000), Pace(deadline_seconds=2))
    assert closed.outcomes == ("late", "late")
    assert (closed.provision_bytes.tolist(), closed.down_bytes.tolist()) == ([500, 500], [0, 0])
    assert not closed.received.any()
    assert close_round(shared([6, 6], down=8000), Pace(deadline_seconds=3)).received.all()
    # Sending from 5 on with 2000 bit/s each: 250 bytes are out at 6.
    closed = close_round(shared([1, 1], up=4000, down=8000), Pace(deadline_seconds=6))
    assert closed.up_bytes.tolist() == [250, 250]


def test_who_drops_out_makes_room_for_the_others():
    # Both would be 7 s on their way; the first leaves at 1.75 with 375 bytes. The other has 625 left.
    closed = close_round(shared([1, 1], up=4000, down=8000), Pace(), np.array([0.25, STAYS]))
    assert closed.outcomes == ("dropped", "ok")
    assert closed.client_seconds.tolist() == [1.75, 2.375 + 1 + 2]
    assert closed.provision_bytes.tolist() == [375, 500]


def test_who_runs_out_of_memory_received_all_and_sends_nothing():
    closed = close_round(shared([1, 1], up=4000, down=8000, fits=[False, True]), Pace())
    assert closed.outcomes == ("oom", "ok")
    assert closed.client_seconds.tolist() == [3, 6]
    assert closed.up_bytes.tolist() == [0, 500]


@given(st.permutations(range(4)))
def test_a_round_on_a_shared_link_does_not_depend_on_the_order_of_its_clients(order):
    trips = shared([1, 2, 3, 4], up=5000, down=9000)
    one, other = close_round(trips, Pace(goal=3)), close_round(take(trips, order), Pace(goal=3))
    assert other.outcomes == tuple(one.outcomes[k] for k in order)
    assert other.client_seconds == pytest.approx(one.client_seconds[order])


def test_partial_work_does_not_know_how_long_sending_will_take(tiny):
    config = {"server_link": {"up_bps": 1e6}, "pace": {"late": "partial", "deadline_seconds": 2.0}}
    with pytest.raises(ConfigError, match="how long sending takes is unknown to whoever is on the way"):
        set_scene(load_config(merged(tiny, config)), None)
