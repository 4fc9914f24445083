"""Rounds that overlap: equal to rounds in step where they must be, and true to their own clock."""

import json
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.adapter import Adapter, GlobalState
from fedray.engine import play_round
from fedray.errors import ConfigError, PolicyError
from fedray.policy import Pace
from fedray.underway import Departure, UnderWay
from left_run import client_record
from test_clock import trips_of
from tiny_run import assert_same_adapter, merged, opened, played, save_fleet

QUIET = {"audit": {"share": 0.0}}
# What two runs computed, but for the clock's own sums.
LEARNT = ("round", "client_id", "assignment", "loss", "outcome", "up_bytes", "staleness", "num_steps")


def run_of(tiny, pace, **groups):
    changes = {**QUIET, **({"pace": pace} if pace else {}), **groups}
    return played(merged(tiny, changes))


def learnt(progress):
    rows = [{name: getattr(record, name) for name in LEARNT} for record in progress.clients]
    return sorted(rows, key=lambda row: (row["round"], row["client_id"]))


def alike(tmp_path):
    """A fleet and work whose trips all take as long."""
    return {
        "fleet": save_fleet(tmp_path / "alike.csv", [400] * 8, flops_per_s_fp32=[4e7] * 8),
        "training": {"max_steps": 2, "learning_rate": 1e-2},
        "data": {"max_length": 8},
        "provision": "preinstalled",
    }


# What async must be where it is no other thing (claims R12).


def test_with_equal_times_and_a_goal_of_all_at_work_fedbuff_is_fedavg_to_the_bit(tiny, tmp_path):
    same = {**alike(tmp_path), "rounds": {"num_rounds": 4, "clients_per_round": 5}}
    in_step = run_of(tiny, None, **same)
    pace = {"goal": 5, "late": "join", "staleness": "polynomial"}
    overlapping = run_of(tiny, pace, **same)
    assert len({record.virtual_seconds for record in in_step.clients}) == 1
    assert learnt(overlapping) == learnt(in_step)
    assert_same_adapter(overlapping.state.adapter, in_step.state.adapter)
    for one, other in zip(overlapping.rounds, in_step.rounds, strict=True):
        assert one.virtual_seconds == pytest.approx(other.virtual_seconds)
        assert (one.accuracy, one.loss, one.joules) == (other.accuracy, other.loss, other.joules)


def test_where_a_round_takes_everybody_unlike_times_are_fedavg_too(tiny):
    same = {"rounds": {"num_rounds": 3, "clients_per_round": 8}}
    in_step = run_of(tiny, None, **same)
    overlapping = run_of(tiny, {"goal": 8, "late": "join"}, **same)
    assert len({record.virtual_seconds for record in in_step.clients}) > 8
    assert learnt(overlapping) == learnt(in_step)
    assert_same_adapter(overlapping.state.adapter, in_step.state.adapter)


@pytest.mark.parametrize("rule", ["factor_mean", "rbla"])
def test_fedasync_with_one_client_at_work_and_alpha_one_goes_on_from_each_clients_end(tiny, rule):
    same = {"rounds": {"num_rounds": 4, "clients_per_round": 1}, "aggregation": rule}
    in_step = run_of(tiny, None, **same)
    overlapping = run_of(tiny, {"goal": 1, "late": "join", "mixing": 1.0}, **same)
    assert learnt(overlapping) == learnt(in_step)
    assert_same_adapter(overlapping.state.adapter, in_step.state.adapter)


# The clock of overlapping rounds.

FEDBUFF = {"goal": 2, "late": "join", "staleness": "polynomial"}
SIX = {"rounds": {"num_rounds": 6, "clients_per_round": 4}}


@pytest.fixture(scope="module")
def buffered(tiny):
    """A run of FedBuff: two updates a round, four clients at work."""
    return run_of(tiny, FEDBUFF, **SIX)


def test_an_update_is_as_stale_as_rounds_closed_while_its_client_was_at_work(buffered):
    closes = list(accumulate(record.virtual_seconds for record in buffered.rounds))
    for record in buffered.clients:
        before = sum(moment <= record.start_seconds + 1e-9 for moment in closes)
        assert record.staleness == record.round - 1 - before
        if record.outcome == "ok":
            end = record.start_seconds + record.virtual_seconds
            assert end <= closes[record.round - 1] + 1e-9
            assert record.round == 1 or end >= closes[record.round - 2] - 1e-9
    assert {record.staleness for record in buffered.clients if record.outcome == "ok"} >= {0, 1, 2}


def test_never_more_are_at_work_than_the_concurrency_and_nobody_twice(buffered):
    trips = [(r.start_seconds, r.start_seconds + r.virtual_seconds, r.client_id) for r in buffered.clients]
    for start, _, _ in trips:
        at_work = [client for a, b, client in trips if a <= start < b]
        assert len(at_work) <= 4
        assert len(set(at_work)) == len(at_work)
    for number in range(1, 7):
        landed = [record.client_id for record in buffered.clients if record.round == number]
        assert len(set(landed)) == len(landed)


def test_every_round_has_its_goal_and_the_last_charges_who_is_called_off(buffered):
    for number in range(1, 7):
        outcomes = Counter(record.outcome for record in buffered.clients if record.round == number)
        assert outcomes["ok"] == 2
        assert outcomes["late"] == (3 if number == 6 else 0) or number == 6
    total = sum(record.virtual_seconds for record in buffered.rounds)
    late = [record for record in buffered.clients if record.outcome == "late"]
    assert late
    for record in late:
        assert record.start_seconds + record.virtual_seconds == pytest.approx(total)
        assert record.loss is None
        assert record.wall_seconds is None
    assert any(record.down_bytes + record.provision_bytes for record in late)
    assert not buffered.under_way.versions
    assert not len(buffered.under_way)


def test_rounds_are_shorter_than_in_step_and_fast_clients_land_more_often(tiny):
    fleet = {"rounds": {"num_rounds": 12, "clients_per_round": 4}, "provision": "preinstalled"}
    in_step = run_of(tiny, None, **fleet)
    overlapping = run_of(tiny, {"goal": 4, "late": "join"}, **fleet)

    def pace_of(progress):
        landed = sum(record.outcome == "ok" for record in progress.clients)
        return landed / sum(record.virtual_seconds for record in progress.rounds)

    assert pace_of(overlapping) > 1.1 * pace_of(in_step)


def test_a_version_is_kept_as_long_as_somebody_trains_from_it_and_no_longer(tiny):
    scene, progress, runtime = opened(merged(tiny, {**QUIET, **SIX, "pace": FEDBUFF}))
    way, kept = progress.under_way, []
    for number in range(1, 6):
        play_round(scene, progress, runtime, number)
        used = {one.version for one in way.departures}
        assert set(way.versions) == used - {progress.state.version}
        kept.append(len(way.versions))
    runtime.close()
    assert max(kept) >= 2


def test_an_update_too_far_behind_is_thrown_away_and_charged(tiny):
    progress = run_of(tiny, {**FEDBUFF, "max_staleness": 1}, **SIX)
    thrown = [r for r in progress.clients if r.message == "it was 2 versions behind"]
    assert thrown
    for record in thrown:
        assert (record.outcome, record.wall_seconds) == ("late", None)
        assert record.up_bytes == record.predicted_up_bytes
    assert max(r.staleness for r in progress.clients if r.outcome == "ok") == 1


def test_with_a_deadline_rounds_close_at_fixed_times_once_somebody_has_landed(tiny):
    pace = {"deadline_seconds": 0.3, "late": "join"}
    progress = run_of(tiny, pace, **SIX, provision="preinstalled")
    for record in progress.rounds:
        waited = record.num_ok == 1 and record.virtual_seconds > 0.3
        assert waited or record.virtual_seconds == pytest.approx(0.3)
    assert 0.3 in [pytest.approx(record.virtual_seconds) for record in progress.rounds]
    assert len({record.num_ok for record in progress.rounds}) > 1
    slow = run_of(tiny, {"deadline_seconds": 0.01, "late": "join"}, **SIX, provision="preinstalled")
    assert slow.rounds[0].virtual_seconds > 0.01
    assert all(record.num_ok for record in slow.rounds)


def test_who_drops_out_is_replaced_and_not_asked_again_in_that_round(tiny, tmp_path):
    fleet = save_fleet(tmp_path / "flaky.csv", availability=[0.5] * 8)
    progress = run_of(tiny, FEDBUFF, **SIX, fleet=fleet, dropouts=True)
    dropped = [record for record in progress.clients if record.outcome == "dropped"]
    assert dropped
    assert [record.num_ok for record in progress.rounds].count(2) >= 5
    for record in dropped:
        again = [r for r in progress.clients if (r.round, r.client_id) == (record.round, record.client_id)]
        assert again == [record]


def test_nobody_is_asked_while_offline_and_the_time_moves_on_to_who_comes(tiny, tmp_path):
    rows = "".join(f"{k},{500 * k},{500 * k + 400}\n" for k in range(8))
    (tmp_path / "trace.csv").write_text(f"client,start_s,end_s\n{rows}")
    availability = {"name": "trace", "file": str(tmp_path / "trace.csv"), "period_seconds": 5000.0}
    pace = {"goal": 1, "late": "join"}
    progress = run_of(tiny, pace, rounds={"num_rounds": 3}, availability=availability)
    # One client at a time is online: each lands alone, and the next round waits for the next one.
    assert [record.outcome for record in progress.clients] == ["ok"] * 3
    starts = [record.start_seconds for record in progress.clients]
    assert starts[1] >= starts[0]
    assert all(start % 500 < 400 for start in starts)


# Values.


def departure(client, end, version=0):
    record = client_record(1, client)
    return Departure(
        version=version, start_seconds=0.0, end_seconds=end, leave_seconds=np.inf, trip=trips_of([1 / 3]),
        share=None, record=record,
    )  # fmt: skip


@given(st.lists(st.sampled_from([0.5, 1.0, 1 / 3, 7.0]), min_size=1, max_size=9), st.randoms())
def test_trips_land_by_their_ends_and_of_equal_moments_by_client_whatever_the_order(ends, random):
    trips = [departure(client, end, client % 3) for client, end in enumerate(ends)]
    shuffled = list(trips)
    random.shuffle(shuffled)
    way = UnderWay()
    for trip in shuffled:
        way.depart(trip)
    again = UnderWay.from_facts(json.loads(json.dumps(way.facts())), {})
    landed = [way.land().departure.record for _ in trips]
    in_order = sorted(trips, key=lambda trip: (trip.end_seconds, trip.client_id))
    assert landed == [trip.record for trip in in_order]
    assert landed == [again.land().departure.record for _ in trips]
    assert way.next_end() is None
    assert way.now_seconds == max(ends)


def test_a_state_that_nobody_trains_from_is_not_kept():
    way = UnderWay()
    way.depart(departure(3, 5.0, version=2))
    for version in range(4):
        way.keep(GlobalState(adapter=Adapter(), version=version))
    assert list(way.versions) == [2]
    assert [one.departure.client_id for one in way.call_off()] == [3]
    assert (len(way), way.versions) == (0, {})


# Failures.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"menu": {"cuts": [2]}, "server": {"mode": "shared"}},
            r"several versions ride a server at once, and server\.mode: shared has one adapter, which all",
        ),
        (
            {"menu": {"cuts": [2]}, "server": {"aggregation_interval": 3}},
            r"an aggregation_interval of 3 averages what lies below the cuts in a round that all clients",
        ),
        ({"aggregation": "flora"}, "moves the frozen weights"),
        (
            {"server_link": {"down_bps": 1e6}},
            r"pace.late: join .* on a server_link who comes later slows",
        ),
    ],
)
def test_what_does_not_go_with_overlapping_rounds_is_refused(tiny, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        opened(merged(tiny, {"pace": {"goal": 2, "late": "join"}, **changes}))


def test_a_selection_that_asks_more_than_there_is_room_for_is_told_so(tiny, tmp_path):
    policy = tmp_path / "greedy.py"
    policy.write_text("def select(view):\n    return view.sample(5)\n")
    with pytest.raises(PolicyError, match=r"select chose 5 clients at second 0 of round 1, and 3 more may"):
        run_of(tiny, {"goal": 2, "late": "join"}, selection=str(policy), rounds={"clients_per_round": 3})


@pytest.mark.parametrize(
    ("pace", "sentence"),
    [
        ({"late": "join"}, "never closes a round without pace.goal or pace.deadline_seconds"),
        ({"mixing": 0.0}, r"pace.mixing is above 0 and at most 1, found 0.0"),
    ],
)
def test_a_pace_that_means_nothing_is_refused(pace, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Pace(**pace)


def test_what_is_drawn_for_a_client_does_not_depend_on_the_goal(tiny):
    # The same clients set out at second 0, whatever happens to them later.
    first = [
        run_of(tiny, {**FEDBUFF, "goal": goal}, rounds={"num_rounds": 1, "clients_per_round": 4})
        for goal in (1, 3)
    ]
    ends = [{r.client_id: r for r in progress.clients if r.start_seconds == 0} for progress in first]
    assert ends[0].keys() == ends[1].keys()
    both = [c for c in ends[0] if ends[0][c].outcome == ends[1][c].outcome == "ok"]
    assert both
    assert [ends[0][c].loss for c in both] == [ends[1][c].loss for c in both]
    assert np.isfinite([ends[0][c].loss for c in both]).all()
