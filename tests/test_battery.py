"""Batteries: trips worked by hand, what charging gives in between, and laws against small steps of time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.battery import Batteries, Charges, Drain
from fedray.clock import close_round
from fedray.policy import Pace
from fedray.sessions import Sessions
from test_clock import trips_of

ONE = np.array([0])


def batteries_of(*spans, capacity=(100.0,), watts=2.0, period=1000.0, **options):
    """Clients that all charge in the same spans."""
    count = len(capacity)
    rows = np.repeat(np.arange(count), len(spans))
    starts, ends = np.tile(np.array(spans, float).reshape(-1, 2), (count, 1)).T
    return Batteries(
        capacity_joules=np.array(capacity),
        charge_watts=np.full(count, watts),
        sessions=Sessions.of(rows, starts, ends, np.full(count, period)),
        rows=np.arange(count),
        **options,
    )


def closed(batteries, charge, *, begins=0.0, pace=None, compute=6.0):
    """A trip that has taken 12 J after 2 s, 5 J in each of 6 s, 43 J after 9 s and 49 J after 10."""
    trips = trips_of([compute] * len(charge))
    drain = Drain(
        batteries=batteries,
        client_ids=np.arange(len(charge)),
        begins_seconds=begins,
        charge_joules=np.array(charge, float),
    )
    return close_round(replace(trips, drain=drain), pace or Pace())


# By hand.


def test_who_runs_empty_drops_out_then_and_is_charged_what_the_battery_held():
    # 27 J: 12 J until second 2, the other 15 J in three seconds of computing.
    found = closed(batteries_of(), [27.0])
    assert found.outcomes == ("dropped",)
    assert found.client_seconds.tolist() == pytest.approx([5.0])
    assert found.joules.tolist() == pytest.approx([27.0])
    assert (found.compute_seconds[0], found.up_bytes[0]) == (pytest.approx(3.0), 0)
    assert found.charge_joules.tolist() == [0.0]
    assert found.emptied.tolist() == [True]
    assert found.received.tolist() == [True]


def test_a_battery_that_holds_just_what_the_trip_takes_lasts():
    found = closed(batteries_of(), [49.0])
    assert (found.outcomes, found.emptied.tolist()) == (("ok",), [False])
    assert found.charge_joules.tolist() == pytest.approx([0.0])


def test_while_it_charges_a_device_works_off_the_mains_and_the_battery_gains():
    # At second 4 it has 5 J left and 9 J at second 6; these last for 1.8 seconds of computing.
    found = closed(batteries_of((4, 6)), [27.0])
    assert found.client_seconds.tolist() == pytest.approx([7.8])
    # What the work took is charged, whoever gave it: 12 J, and 5.8 s of 5 W.
    assert found.joules.tolist() == pytest.approx([41.0])


def test_a_battery_holds_no_more_than_its_capacity():
    # Full at 28 J until second 5; then 15 J of computing, 1 J of waiting and 6 J of sending.
    found = closed(batteries_of((0, 5), capacity=(28.0,)), [27.0])
    assert found.outcomes == ("ok",)
    assert found.charge_joules.tolist() == pytest.approx([6.0])


def test_a_round_that_closes_takes_out_what_was_spent_until_then():
    found = closed(batteries_of(capacity=(100.0, 100.0)), [60.0, 60.0], pace=Pace(deadline_seconds=4.0))
    assert found.outcomes == ("late", "late")
    assert found.charge_joules.tolist() == pytest.approx([38.0, 38.0])
    # Who would run empty after the close has not.
    early = closed(batteries_of(), [27.0], pace=Pace(deadline_seconds=4.0))
    assert (early.outcomes, early.emptied.tolist()) == (("late",), [False])
    assert early.charge_joules.tolist() == pytest.approx([5.0])


def test_a_device_on_mains_beside_one_with_a_battery_never_runs_empty():
    found = closed(batteries_of(capacity=(np.inf, 100.0)), [np.inf, 27.0])
    assert found.outcomes == ("ok", "dropped")
    assert found.charge_joules.tolist() == [np.inf, 0.0]


def test_when_a_trip_begins_decides_whether_it_meets_the_charger():
    # The charger's seconds 4 to 6 are those of the run: a trip that begins at 10 meets none of them.
    found = closed(batteries_of((4, 6)), [27.0], begins=10.0)
    assert found.client_seconds.tolist() == pytest.approx([5.0])
    # Nor if the run itself begins so late in the sessions.
    later = closed(batteries_of((4, 6), start_seconds=10.0), [27.0])
    assert later.client_seconds.tolist() == pytest.approx([5.0])


def test_between_trips_a_battery_gains_while_it_charges_up_to_its_capacity():
    batteries, charges = batteries_of((20, 30), period=100.0), Charges()
    assert charges.at(batteries, ONE, 0.0).tolist() == [100.0]
    charges.leave(batteries, ONE, np.array([40.0]), np.array([10.0]))
    moments = [15.0, 25.0, 30.0, 99.0, 130.0, 1000.0]
    assert [charges.at(batteries, ONE, t)[0] for t in moments] == [40, 50, 60, 60, 80, 100]
    again = Charges.from_arrays(charges.to_arrays())
    assert again.at(batteries, ONE, 130.0).tolist() == [80.0]


def test_a_run_may_begin_with_batteries_half_full_and_work_leaves_the_reserve_alone():
    batteries = batteries_of((20, 30), start_share=0.5, reserve_share=0.2)
    charge = Charges().at(batteries, ONE, 0.0)
    assert charge.tolist() == [50.0]
    assert batteries.spare_joules(ONE, charge, 0.0).tolist() == [30.0]
    assert batteries.spare_joules(ONE, charge, 25.0).tolist() == [np.inf]
    mains = batteries_of(capacity=(np.inf,), reserve_share=0.2)
    assert mains.spare_joules(ONE, np.array([np.inf]), 0.0).tolist() == [np.inf]


# Laws.

TICK = 1 / 16
spans_in_100 = st.lists(st.integers(0, 1600), min_size=0, max_size=8, unique=True).map(
    lambda ends: [(a * TICK, b * TICK) for a, b in zip(*[iter(sorted(ends))] * 2, strict=False)]
)


@settings(max_examples=30)
@given(spans_in_100, st.integers(0, 6000))
def test_the_seconds_online_until_a_moment_are_those_counted_one_by_one(spans, moment):
    sessions = batteries_of(*spans, period=100.0).sessions
    ticks = np.arange(moment) * TICK
    counted = sessions.is_online(np.zeros(moment, np.int64), ticks).sum() * TICK
    assert sessions.seconds_until(ONE, moment * TICK).tolist() == [counted]


def _stepped(batteries, charge, rates, begins):
    """When a battery is empty and what it holds at last, by small steps of time."""
    capacity, watts = batteries.capacity_joules[0], batteries.charge_watts[0]
    for step, rate in enumerate(np.repeat(rates, 16)):
        if batteries.charging(ONE, begins + step * TICK)[0]:
            charge = min(capacity, charge + watts * TICK)
        elif charge < rate * TICK:
            return (step * TICK + charge / rate), 0.0
        else:
            charge -= rate * TICK
    return np.inf, charge


@settings(max_examples=60)
@given(
    spans_in_100,
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=60),
    st.floats(0.0, 60.0),
    st.integers(0, 3200),
)
def test_what_a_battery_goes_through_is_what_small_steps_of_time_make_of_it(spans, rates, charge, begins):
    # Watts change every second, and charging at sixteenths of one.
    batteries = batteries_of(*spans, capacity=(60.0,), watts=1.0, period=100.0)
    edges = np.arange(len(rates) + 1.0)
    totals = np.concatenate([[0.0], np.cumsum(rates)])
    drain = Drain(
        batteries=batteries,
        client_ids=ONE,
        begins_seconds=begins * TICK,
        charge_joules=np.array([charge]),
    )
    empty, left = drain.followed(lambda until: np.interp(until, edges, totals), np.array([float(len(rates))]))
    want_empty, want_left = _stepped(batteries, charge, rates, begins * TICK)
    assert left[0] == pytest.approx(want_left, abs=1e-6)
    if left[0] > 1e-6:  # of a battery that just lasts, rounding decides
        assert empty[0] == pytest.approx(want_empty, abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=6), st.randoms())
def test_whom_else_a_round_asks_changes_no_battery(charge, random):
    batteries = batteries_of((1, 3), (6, 7), capacity=(60.0,) * len(charge))
    together = closed(batteries, charge)
    order = list(range(len(charge)))
    random.shuffle(order)
    for place in order:
        alone = closed(batteries_of((1, 3), (6, 7), capacity=(60.0,)), [charge[place]])
        assert alone.charge_joules[0] == together.charge_joules[place]
        assert alone.client_seconds[0] == together.client_seconds[place]
