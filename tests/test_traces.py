"""Traces as their publishers write them, worked by hand; and files that are none."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedray.errors import ConfigError
from fedray.traces import load_sessions


def spans(sessions, row):
    at = slice(sessions.offsets[row], sessions.offsets[row + 1])
    return list(zip(sessions.starts[at].tolist(), sessions.ends[at].tolist(), strict=True))


def saved(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_csv_has_a_row_for_each_interval_and_repeats_after_its_last_hour(tmp_path):
    path = saved(tmp_path / "trace.csv", "client,start_s,end_s\n7,100,200\n3,0,5000\n7,300,400\n")
    sessions = load_sessions(path)
    assert [spans(sessions, 0), spans(sessions, 1)] == [[(0, 5000)], [(100, 200), (300, 400)]]
    assert sessions.period_seconds.tolist() == [7200, 7200]
    assert load_sessions(path, period_seconds=9000).period_seconds.tolist() == [9000, 9000]


def test_one_kind_of_several_is_read_and_who_has_none_of_it_is_never_online(tmp_path):
    lines = "client,policy,start_s,end_s\n0,strict,10,20\n0,loose,10,90\n1,loose,5,6\n"
    path = saved(tmp_path / "trace.csv", lines)
    strict = load_sessions(path, kind="strict")
    assert [spans(strict, 0), spans(strict, 1)] == [[(10, 20)], []]
    with pytest.raises(
        ConfigError, match=r"has the kinds loose, strict, and none is asked for; set availability"
    ):
        load_sessions(path)
    with pytest.raises(ConfigError, match="'tight' is asked for"):
        load_sessions(path, kind="tight")


def test_fedscales_entries_are_online_from_active_to_inactive_and_repeat_after_their_finish_time(tmp_path):
    entry = {"duration": 30, "active": [10, 50], "inactive": [20, 70], "finish_time": 100, "model": "x"}
    sessions = load_sessions(
        saved(tmp_path / "behave.json", {"1": entry, "2": {**entry, "finish_time": 200}})
    )
    assert spans(sessions, 0) == [(10, 20), (50, 70)]
    assert sessions.period_seconds.tolist() == [100, 200]


def test_fedscales_own_printed_clients_are_read(shared):
    path = shared / "data" / "devices" / "fedscale_excerpt.parquet"
    sessions, rows = load_sessions(path), pq.read_table(path).to_pylist()
    assert len(sessions) == 10
    online = sessions.share() * sessions.period_seconds
    assert online == pytest.approx([row["active_total_s"] for row in rows])


def test_flashs_cached_timers_start_at_their_traces_start(tmp_path):
    timer = {"isSuccess": True, "trace_start": 1000.0, "trace_end": 1500.0, "ready_time": [[1100.0, 1200.0]]}
    sessions = load_sessions(saved(tmp_path / "cached_timers.json", {"guid": timer}))
    assert spans(sessions, 0) == [(100, 200)]
    assert sessions.period_seconds.tolist() == [500]


def test_flashs_messages_are_online_while_locked_charging_and_on_wifi(tmp_path):
    log = [
        ("00:00:00", "battery_charged_on"), ("00:00:10", "Wifi"), ("00:01:00", "screen_lock"),
        ("00:02:00", "83.0%"), ("00:03:00", "4G"), ("00:04:00", "wifi"), ("00:05:00", "screen_unlock"),
        ("00:10:00", "screen_off"),
    ]  # fmt: skip
    messages = "\n".join(f"2020-01-29 {when}\t{state}" for when, state in log)
    entry = {"guid": "g", "model": "m", "messages": messages}
    sessions = load_sessions(saved(tmp_path / "user_behavior_tiny.json", {"g": entry}))
    assert spans(sessions, 0) == [(60, 180), (240, 300)]
    assert sessions.period_seconds.tolist() == [600]


def test_plain_lists_of_intervals_are_read(tmp_path):
    sessions = load_sessions(saved(tmp_path / "ready.json", {"a": [[0, 10], [5, 20]], "b": []}))
    assert [spans(sessions, 0), spans(sessions, 1)] == [[(0, 20)], []]


class Bomb:
    """Runs code where a pickle of it is loaded."""

    def __reduce__(self):
        return (open, ("loaded", "w"))


@pytest.mark.parametrize("name", ["client_behave_trace", "trace.pkl"])
def test_a_pickle_is_never_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({1: Bomb()}))
    with pytest.raises(ConfigError, match=r"looks like a pickle, which runs code .* write it as JSON"):
        load_sessions(tmp_path / name)
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "client,from,end_s\n1,2,3\n", "lacks the column 'start_s'; it has client, from, end_s"),
        ("a.csv", "client,start_s,end_s\n1,late,3\n", "a has no kinds|start_s must hold numbers"),
        ("a.csv", "client,start_s,end_s\n1,30,3\n", "a.csv: Client 0 is online from 30 to 3 s"),
        ("a.json", "[1]", "is no object by client, found a list"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", {"x": 3}, "client 'x' has none of the known forms"),
        ("a.json", {"x": [[1, 2, 3]]}, "client 'x' has none of the known forms"),
        ("a.json", {"x": {"active": [1], "inactive": []}}, "becomes active 1 times and inactive 0 times"),
        ("a.json", {"x": []}, "has nobody online"),
        ("a.txt", "x", "is .parquet, .csv or .json; found 'a.txt'"),
    ],
)
def test_a_file_that_is_no_trace_is_said_so(tmp_path, name, content, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_sessions(saved(tmp_path / name, content))


def test_options_that_do_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no availability trace"):
        load_sessions(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"chooses a table's rows; ready\.json is JSON"):
        load_sessions(saved(tmp_path / "ready.json", {"a": [[0, 10]]}), kind="strict")
    with pytest.raises(ConfigError, match="has no kinds, and 'strict' is asked for"):
        load_sessions(saved(tmp_path / "a.csv", "client,start_s,end_s\n1,2,3\n"), kind="strict")
    assert np.isfinite(load_sessions(tmp_path / "a.csv").share()).all()
