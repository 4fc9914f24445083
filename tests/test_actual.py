"""Devices that are not what they declare: factors by hand, their laws, and runs that go by them."""

import numpy as np
import pytest

from fedray.actual import Actual, Budgets, actual_of, load_budgets
from fedray.config import load_config
from fedray.config.time_sections import ActualSection
from fedray.errors import ConfigError
from fedray.sessions import DAY_SECONDS
from test_clock import trips_of
from tiny_run import assert_same_adapter, merged, played, save_fleet

MANY = 20_000


def actual(budgets=None, seed=3, **section):
    return Actual(section=ActualSection(**section), seed=seed, fleet=None, budgets=budgets)


def device(count):
    return trips_of([1] * count).device


def rates(found, count, *, ids=None, round_number=1, at_seconds=0.0):
    ids = np.arange(count) if ids is None else np.array(ids)
    return found.device(device(count).take(ids), ids, round_number, at_seconds).flops_per_s["fp32"]


def test_devices_are_what_they_declare_unless_something_is_said():
    declared = device(3)
    assert actual().as_declared
    assert actual().device(declared, np.arange(3), 1, 0.0) is declared
    assert not actual(link_jitter=0.1).as_declared
    assert not actual(compute_drift=0.1).as_declared
    assert not actual(memory_misreport=0.1).as_declared


def test_budgets_hold_from_their_moment_to_the_next_one_and_over_the_end_of_the_period():
    budgets = Budgets(
        starts=np.array([10.0, 50.0, 0.0]),
        offsets=np.array([0, 2, 3]),
        shares=np.array([[0.5, 1, 1], [1, 0.25, 0.5], [1, 1, 1]]),
        period_seconds=100.0,
    )
    ids = np.arange(3)
    assert budgets.at(ids, 20.0)[0].tolist() == [0.5, 1, 1]
    assert budgets.at(ids, 350.0)[0].tolist() == [1, 0.25, 0.5]
    assert budgets.at(ids, 5.0)[0].tolist() == [1, 0.25, 0.5]
    # Client 2 begins again with the first row.
    assert budgets.at(ids, 20.0)[2].tolist() == [0.5, 1, 1]
    found = actual(budgets).device(device(3), ids, 1, 20.0)
    assert found.memory_bytes.tolist() == [50, 100, 50]
    found = actual(budgets).device(device(3), ids, 1, 60.0)
    assert found.flops_per_s["fp32"].tolist() == [0.25, 1, 0.25]
    assert found.memory_bytes_per_s.tolist() == [0.25, 1, 0.25]
    assert (found.up_bps.tolist(), found.down_bps.tolist()) == ([2000, 4000, 2000], [4000, 8000, 4000])
    assert found.storage_bytes.tolist() == [100, 100, 100]


def test_a_jitter_is_new_in_every_round_and_has_median_one_and_its_spread():
    found = actual(compute_jitter=0.3)
    one, two = (np.log(rates(found, MANY, round_number=number)) for number in (1, 2))
    for drawn in (one, two):
        assert np.median(drawn) == pytest.approx(0, abs=0.01)
        assert drawn.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03


def test_a_misreport_stays_and_a_drift_goes_one_way_with_time():
    misreport = actual(compute_misreport=0.3)
    assert (rates(misreport, 50) == rates(misreport, 50, round_number=9, at_seconds=1e6)).all()
    drift = actual(compute_drift=0.2)
    assert (rates(drift, 50) == 1).all()
    after_one, after_two = (np.log(rates(drift, MANY, at_seconds=n * DAY_SECONDS)) for n in (1, 2))
    assert after_one.std() == pytest.approx(0.2, rel=0.02)
    assert after_two == pytest.approx(2 * after_one)


def test_what_a_client_really_is_depends_on_nobody_who_is_asked_beside_it():
    found = actual(compute_jitter=0.3, compute_misreport=0.2, link_jitter=0.1, memory_misreport=0.1)
    everybody = rates(found, 30)
    assert rates(found, 30, ids=[7, 3, 21]).tolist() == everybody[[7, 3, 21]].tolist()
    assert rates(actual(seed=4, compute_jitter=0.3), 30).tolist() != everybody.tolist()


def linked(record):
    """Seconds of a whole trip of a tiny run's client that its link takes, as declared."""
    received = record.down_bytes + record.provision_bytes
    return 2 * 0.05 + received * 8 / 4e5 + record.up_bytes * 8 / 1e5


def saved_budgets(tmp_path, **shares):
    path = tmp_path / "budgets.csv"
    path.write_text(f"client,start_s,{','.join(shares)}\n0,0,{','.join(map(str, shares.values()))}\n")
    return {"actual": {"budgets": str(path)}, "audit": {"share": 0.0}}


def test_a_client_at_half_its_declared_rate_is_priced_as_declared_and_takes_twice_the_computing(
    tiny, tmp_path
):
    plain = played(merged(tiny, {"audit": {"share": 0.0}}))
    slow = played(merged(tiny, saved_budgets(tmp_path, compute_share=0.5)))
    for was, now in zip(plain.clients, slow.clients, strict=True):
        assert now.assignment == was.assignment
        assert was.virtual_seconds == pytest.approx(was.predicted_seconds)
        assert now.predicted_seconds == was.predicted_seconds
        assert now.virtual_seconds - linked(now) == pytest.approx(2 * (was.predicted_seconds - linked(was)))
    assert_same_adapter(plain.state.adapter, slow.state.adapter)


def test_a_jitter_moves_the_clock_and_nothing_that_is_learnt(tiny):
    plain = played(merged(tiny, {"audit": {"share": 0.0}}))
    shaken = played(
        merged(tiny, {"actual": {"compute_jitter": 0.5, "link_jitter": 0.5}, "audit": {"share": 0.0}})
    )
    ratios = [r.virtual_seconds / r.predicted_seconds for r in shaken.clients]
    assert min(ratios) < 0.9 < 1.1 < max(ratios)
    assert [r.predicted_seconds for r in shaken.clients] == [r.predicted_seconds for r in plain.clients]
    assert_same_adapter(plain.state.adapter, shaken.state.adapter)


def test_who_has_less_memory_than_it_declares_runs_out_of_it_and_the_record_says_so(tiny, tmp_path):
    progress = played(merged(tiny, saved_budgets(tmp_path, memory_share=0.1)))
    for record in progress.clients:
        assert record.outcome == "oom"
        assert record.memory_bytes * 0.1 < record.predicted_peak_bytes <= record.memory_bytes
        assert " KiB and declares " in record.message


def test_under_cuts_the_own_steps_take_the_actual_seconds(tiny, tmp_path):
    cuts = {"menu": {"ranks": [2], "depths": ["all"], "cuts": [2], "whole": False}}
    plain = played(merged(tiny, {**cuts, "rounds": {"num_rounds": 1}, "audit": {"share": 0.0}}))
    slow = played(
        merged(tiny, {**cuts, "rounds": {"num_rounds": 1}, **saved_budgets(tmp_path, compute_share=0.25)})
    )
    for was, now in zip(plain.clients, slow.clients, strict=True):
        assert now.virtual_seconds > was.virtual_seconds
        assert now.predicted_seconds == was.predicted_seconds


def test_a_fleet_may_be_given_of_what_the_clients_really_are(tiny, tmp_path):
    other = save_fleet(tmp_path / "actual.csv", flops_per_s_fp32=[1e7] * 8)
    progress = played(
        merged(tiny, {"actual": {"fleet": other}, "rounds": {"num_rounds": 1}, "audit": {"share": 0.0}})
    )
    for record in progress.clients:
        # Declared are 2e7 times one to four.
        factor = 2 * (1 + record.client_id % 4)
        computing = record.predicted_seconds - linked(record)
        assert record.virtual_seconds - linked(record) == pytest.approx(factor * computing)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "client,start_s,memory\n0,0,1\n",
            "have client, start_s, memory; give client, start_s and some of mem",
        ),
        ("client,memory_share\n0,1\n", "have client, memory_share; give client, start_s"),
        ("client,start_s\n", "cannot be read|have no rows"),
        ("client,start_s,memory_share\n1,0,1\n", "clients count from 0 without gaps, found 1 as the last"),
        ("client,start_s,memory_share\n0,90000,1\n", "from 0 to below the period of 86400 s; found 90000"),
        ("client,start_s,memory_share\n0,0,0\n", "shares are above 0 and at most 1; found 0"),
        ("client,start_s,memory_share\n0,0,much\n", "cannot be read"),
    ],
)
def test_budgets_that_are_none_are_said_so(tmp_path, content, sentence):
    path = tmp_path / "budgets.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        load_budgets(path, DAY_SECONDS)


def test_an_actual_fleet_is_a_table():
    with pytest.raises(
        ConfigError, match=r"actual\.fleet is a \.csv or \.parquet table of clients, found 'edge'"
    ):
        actual_of(load_config({"actual": {"fleet": "edge"}}), 3)


def test_crashes_come_at_any_moment_alike():
    found = actual(crashes_per_hour=2.0).crash_seconds(np.arange(MANY), 1)
    # Exponential: the mean is half an hour, and in the first 6 minutes come 1 - exp(-0.2) = 0.181 of them.
    assert found.mean() == pytest.approx(1800, rel=0.03)
    assert (found < 360).mean() == pytest.approx(0.1813, abs=0.01)
    # A matter of the seed, the round and the client alone.
    some = np.array([7, 3])
    assert actual(crashes_per_hour=2.0).crash_seconds(some, 1).tolist() == found[some].tolist()
    assert actual(crashes_per_hour=2.0).crash_seconds(some, 2).tolist() != found[some].tolist()
    assert np.isinf(actual().crash_seconds(some, 1)).all()
    assert actual(crashes_per_hour=2.0).as_declared


@pytest.mark.parametrize("pace", [{}, {"goal": 2, "late": "join"}])
def test_who_crashes_drops_out_at_that_moment_and_is_charged_until_then(tiny, tmp_path, pace):
    fleet = save_fleet(tmp_path / "fleet.csv", compute_watts=[2.0] * 8, idle_watts=[1.0] * 8)
    changes = {
        "fleet": fleet,
        "pace": pace,
        "rounds": {"num_rounds": 2, "clients_per_round": 4},
        "audit": {"distinct": False, "share": 0.0},
        "actual": {"crashes_per_hour": 2000.0},
    }
    progress = played(merged(tiny, changes))
    outcomes = {record.outcome for record in progress.clients}
    assert {"ok", "dropped"} <= outcomes
    for record in progress.clients:
        if record.outcome != "dropped":
            continue
        assert record.virtual_seconds < record.predicted_seconds
        assert record.virtual_seconds <= record.joules <= 2 * record.virtual_seconds
        if not pace:
            ids = np.array([record.client_id])
            crash = actual(seed=0, crashes_per_hour=2000.0).crash_seconds(ids, record.round)
            assert record.virtual_seconds == crash[0]
