"""Sessions that repeat: a few worked by hand, then laws, and a real trace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.sessions import DAY_SECONDS, Sessions, diurnal
from fedray.traces import load_sessions

NEVER = np.inf


def sessions_of(*clients, period=100.0):
    """Each client's list of (start, end)."""
    flat = [(row, start, end) for row, spans in enumerate(clients) for start, end in spans]
    rows, starts, ends = (
        (np.array([one[i] for one in flat]) for i in range(3)) if flat else 3 * (np.zeros(0),)
    )
    return Sessions.of(
        rows.astype(int), starts.astype(float), ends.astype(float), np.full(len(clients), period)
    )


# Client 0 is online from 10 to 30 and from 60 to 100, and so through the wrap to nothing; client 1 from 80
# through the wrap to 20; client 2 always; client 3 never.
BY_HAND = sessions_of([(60, 100), (10, 30)], [(80, 100), (0, 20)], [(0, 100)], [])
ALL = np.arange(4)


@pytest.mark.parametrize(
    ("moment", "online", "until", "following"),
    [
        (0, [0, 1, 1, 0], [0, 20, NEVER, 0], [10, 0, 0, NEVER]),
        (10, [1, 1, 1, 0], [30, 20, NEVER, 10], [10, 10, 10, NEVER]),
        (30, [0, 0, 1, 0], [30, 30, NEVER, 30], [60, 80, 30, NEVER]),
        (90, [1, 1, 1, 0], [100, 120, NEVER, 90], [90, 90, 90, NEVER]),
        (300, [0, 1, 1, 0], [300, 320, NEVER, 300], [310, 300, 300, NEVER]),
        (350.5, [0, 0, 1, 0], [350.5, 350.5, NEVER, 350.5], [360, 380, 350.5, NEVER]),
    ],
)
def test_a_moment_finds_its_session_in_any_period(moment, online, until, following):
    assert BY_HAND.is_online(ALL, moment).tolist() == [bool(one) for one in online]
    assert BY_HAND.online_until(ALL, moment).tolist() == until
    assert BY_HAND.next_online(ALL, moment).tolist() == following


def test_a_share_is_the_online_part_of_a_period():
    assert BY_HAND.share().tolist() == [0.6, 0.4, 1.0, 0.0]


def test_intervals_that_touch_or_overlap_are_one():
    joined = sessions_of([(0, 50), (10, 20), (50, 60), (55, 70), (80, 90)], [(5, 6)])
    assert joined.starts.tolist() == [0, 80, 5]
    assert joined.ends.tolist() == [70, 90, 6]


def test_clients_may_have_periods_of_their_own():
    two = Sessions.of(np.array([0, 1]), np.zeros(2), np.array([5.0, 5.0]), np.array([10.0, 100.0]))
    assert two.is_online(np.array([0, 1]), 12.0).tolist() == [True, False]


def test_nobody_online_at_all_is_never_found():
    nobody = sessions_of([], [])
    assert nobody.is_online(np.array([0, 1]), 5.0).tolist() == [False, False]
    assert nobody.next_online(np.array([1]), 5.0).tolist() == [NEVER]
    assert nobody.online_until(np.array([1]), 5.0).tolist() == [5]


spans = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(spans, min_size=1, max_size=4), st.floats(0, 1e6))
def test_who_is_online_is_so_until_the_end_and_who_comes_online_is_so_then(clients, moment):
    sessions = sessions_of(*clients)
    rows = np.arange(len(clients))
    time = moment % 100
    expected = [any(start <= time < end for start, end in spans) for spans in clients]
    assert sessions.is_online(rows, moment).tolist() == expected
    for row in rows:
        one = np.array([row])
        until, following = sessions.online_until(one, moment)[0], sessions.next_online(one, moment)[0]
        if np.isfinite(until) and until > moment:
            assert not sessions.is_online(one, until)[0]
        if np.isfinite(following):
            assert sessions.is_online(one, following)[0]
            assert following - moment <= 100


def test_over_a_day_a_diurnal_client_is_online_for_the_share_it_declares():
    share = np.array([0.0, 0.1, 0.5, 1.0, 0.25])
    rhythm = diurnal(share, seed=4, peak_hour=3, spread_hours=2)
    assert rhythm.share() == pytest.approx(share, abs=1e-6)
    assert rhythm.online_until(np.array([3]), 1000.0)[0] == NEVER


def test_most_diurnal_clients_are_online_at_the_peak_and_fewest_half_a_day_later():
    rhythm = diurnal(np.full(2000, 0.25), seed=1, peak_hour=3, spread_hours=3)
    by_hour = [rhythm.is_online(np.arange(2000), 3600.0 * hour).mean() for hour in range(24)]
    # A session of 6 h is over the peak if its middle lies within 3 h of it: one standard deviation, 0.683.
    assert by_hour[3] == pytest.approx(0.683, abs=0.03)
    assert by_hour[15] == min(by_hour) < 0.01
    assert by_hour[3] == pytest.approx(rhythm.is_online(np.arange(2000), 5 * DAY_SECONDS + 10800).mean())


def test_a_clients_rhythm_does_not_depend_on_how_many_there_are():
    few, many = (diurnal(np.full(n, 0.3), seed=2, peak_hour=3, spread_hours=3) for n in (10, 500))
    rows = np.arange(10)
    for hour in range(24):
        assert (few.is_online(rows, 3600.0 * hour) == many.is_online(rows, 3600.0 * hour)).all()


@pytest.mark.parametrize("kind", ["strict", "loose"])
def test_the_simulated_share_online_is_the_real_traces(shared, kind):
    path = shared / "data" / "devices" / "availability_intervals.parquet"
    sessions = load_sessions(path, kind=kind)
    assert len(sessions) == 3478  # the file's clients_total
    assert (sessions.period_seconds == 172_800).all()
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pydict()
    of_kind = np.array(rows["policy"]) == kind
    seconds = (np.array(rows["end_s"]) - np.array(rows["start_s"]))[of_kind].sum()
    # Asked every ten minutes of the 48 hours, clients are online as often as the intervals say.
    moments = np.arange(0, 172_800, 600.0)
    asked = np.mean([sessions.is_online(np.arange(3478), moment).mean() for moment in moments])
    assert asked == pytest.approx(seconds / 172_800 / 3478, rel=0.005)
    assert sessions.share().mean() == pytest.approx(seconds / 172_800 / 3478, rel=1e-9)


def test_a_million_clients_are_looked_up_in_a_moment():
    rhythm = diurnal(np.full(1_000_000, 0.2), seed=0, peak_hour=3, spread_hours=6)
    online = rhythm.is_online(np.arange(1_000_000), 40_000.0)
    assert 0 < online.mean() < 0.4


@pytest.mark.parametrize(
    ("start", "end", "period", "sentence"),
    [
        (5, 4, 100, "Client 0 is online from 5 to 4 s, which is no interval within its period of 100 s"),
        (5, 101, 100, "Client 0 is online from 5 to 101 s"),
        (-1, 4, 100, "Client 0 is online from -1 to 4 s"),
        (1, 4, 0, "Row 0 repeats after 0 s; give a period above 0"),
    ],
)
def test_an_interval_that_is_none_is_refused(start, end, period, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Sessions.of(
            np.array([0]), np.array([float(start)]), np.array([float(end)]), np.array([float(period)])
        )
