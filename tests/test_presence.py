"""Runs whose clients come and go: who is offline is not asked, who leaves drops out, a server waits."""

import numpy as np
import pytest

from fedray.clock import close_round
from fedray.config import load_config
from fedray.errors import ConfigError, PolicyError
from fedray.fleet import Fleet, Profile
from fedray.policy import Pace, View
from fedray.presence import Presence, presence_of
from fedray.scene import set_scene
from fedray.sessions import Sessions
from test_clock import trips_of
from tiny_run import merged, played


def present(*spans, period=1000.0):
    """Client k is online in the k-th span alone."""
    starts, ends = np.array(spans, float).T
    count = len(spans)
    sessions = Sessions.of(np.arange(count), starts, ends, np.full(count, period))
    return Presence(sessions=sessions, rows=np.arange(count), start_seconds=0.0)


def test_a_run_may_start_within_its_trace():
    presence = present((100, 200), (300, 400))
    later = Presence(sessions=presence.sessions, rows=presence.rows, start_seconds=150.0)
    both = np.array([0, 1])
    assert later.online(both, 0.0).tolist() == [True, False]
    assert later.until(both, 20.0).tolist() == [50, 20]
    assert later.opens(both, 49.0) == 49
    assert later.opens(both, 60.0) == 150
    assert later.opens(np.array([0]), 60.0) == 950


def test_who_foretells_to_stay_is_online_all_the_time_between_two_moments():
    presence = present((100, 200), (150, 400), (0, 1000))
    three = np.arange(3)
    assert presence.stays(three, 100.0, 200.0).tolist() == [True, False, True]
    assert presence.stays(three, 150.0, 201.0).tolist() == [False, True, True]
    assert presence.stays(three, 1150.0, 1400.0).tolist() == [False, True, True]
    assert Presence(rows=three).stays(three, 0.0, 1e9).all()


def test_a_run_asks_who_is_about_to_leave_by_the_trace_itself(tiny, tmp_path):
    # Clients come for 1000 s each; every second one leaves 60 s after the run has started.
    trace, rows = tmp_path / "trace.csv", ["client,start_s,end_s"]
    rows += [f"{k},0,{60 if k % 2 else 1000}" for k in range(8)]
    trace.write_text("\n".join(rows) + "\n")
    options = {"accuracy": 1.0, "first_window_seconds": 50}
    config = merged(
        tiny,
        {
            "availability": {"name": "trace", "file": str(trace)},
            "selection": {"name": "refl", "options": options},
            "rounds": {"num_rounds": 1, "clients_per_round": 4},
        },
    )
    scene = set_scene(load_config(config), None)
    online = scene.presence.until(np.arange(8), 0.0)
    progress = played(config)
    assert sorted(record.client_id for record in progress.clients) == np.flatnonzero(online == 60).tolist()


def test_a_round_with_clients_who_are_all_offline_starts_when_the_first_of_them_comes():
    presence = present((100, 200), (150, 400), (5, 5))
    assert presence.asked(np.array([2, 1, 0]), 20.0)[0] == 100
    assert presence.asked(np.array([2, 1, 0]), 20.0)[1].tolist() == [0]
    assert presence.asked(np.array([1, 0]), 160.0)[1].tolist() == [0, 1]
    with pytest.raises(PolicyError, match="select chose 1 clients, none of whom is ever online"):
        presence.asked(np.array([2]), 20.0)


def test_without_sessions_everybody_is_online_for_ever():
    always = Presence(rows=np.arange(3))
    assert always.online(np.arange(3), 5.0).all()
    assert np.isinf(always.until(np.arange(3), 5.0)).all()
    assert always.opens(np.arange(3), 5.0) == 5


def test_a_fleets_clients_take_every_client_of_a_trace_once_before_they_begin_again(tmp_path):
    lines = ["client,start_s,end_s", *(f"{k},{k},{k + 1}" for k in range(10))]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    config = load_config({"availability": {"name": "trace", "file": str(tmp_path / "trace.csv")}})
    profile = Profile(device_class="a", memory_bytes=1, flops_per_s_fp32=1.0, up_bps=1.0, down_bps=1.0)
    fleet = Fleet.from_profiles([profile] * 25)
    rows = presence_of(config, fleet, 25).rows
    assert sorted(rows[:10]) == list(range(10))
    assert rows[10:20].tolist() == rows[:10].tolist()
    assert presence_of(config, fleet, 12).rows.tolist() == rows[:12].tolist()


def test_a_sample_holds_nobody_who_is_offline_where_only_the_online_are_asked():
    view = View(
        round=1, seed=1, num_clients=50, clients_per_round=8, menu=(), may_be_asked=lambda ids: ids % 5 == 0,
    )  # fmt: skip
    assert (view.sample() % 5 == 0).all()
    assert len(view.sample()) == 8


def test_who_goes_offline_drops_out_then_and_is_charged_until_then():
    # Receiving ends at 2 s; client 0 would arrive at 5 s and goes at 4, client 1 arrives at 10 as it goes.
    closed = close_round(trips_of([1, 6]), Pace(), None, np.array([4.0, 10.0]))
    assert closed.outcomes == ("dropped", "ok")
    assert closed.client_seconds.tolist() == [4, 10]
    # Sending starts at 3 and its round trip ends at 4: nothing has left.
    assert closed.up_bytes.tolist() == [0, 500]


def trace(tmp_path, rows):
    path = tmp_path / "trace.csv"
    path.write_text("client,start_s,end_s\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return {"name": "trace", "file": str(path), "period_seconds": 100_000.0}


def test_a_server_waits_until_somebody_is_online_and_asks_nobody_else(tiny, tmp_path):
    # Every second client of the trace is online from 500 s on, for good; nobody before.
    available = trace(tmp_path, [(k, 500, 100_000) if k % 2 else (k, 99_990, 100_000) for k in range(8)])
    progress = played(merged(tiny, {"availability": available, "audit": {"share": 0.0}}))
    assert {record.outcome for record in progress.clients} == {"ok"}
    assert len({record.client_id for record in progress.clients}) == 4
    assert progress.rounds[0].virtual_seconds > 500
    assert all(record.virtual_seconds < 500 for record in progress.rounds[1:])
    # What a client took counts from the moment at which it was asked.
    first = [record.virtual_seconds for record in progress.clients if record.round == 1]
    assert progress.rounds[0].virtual_seconds == pytest.approx(500 + max(first))


def test_who_goes_offline_in_a_round_drops_out_of_it(tiny, tmp_path):
    ends = {k: 0.5 for k in range(4)} | {k: 100_000 for k in range(4, 8)}
    progress = played(
        merged(
            tiny,
            {
                "availability": trace(tmp_path, [(k, 0, end) for k, end in ends.items()]),
                "rounds": {"num_rounds": 2, "clients_per_round": 8},
                "audit": {"share": 0.0},
            },
        )
    )
    first = [record for record in progress.clients if record.round == 1]
    gone = [record for record in first if record.outcome == "dropped"]
    assert {record.virtual_seconds for record in gone} == {0.5}
    assert len(first) == 8
    assert len(gone) == 4
    again = [record.client_id for record in progress.clients if record.round == 2]
    assert not {record.client_id for record in gone} & set(again)


def test_options_without_effect_and_a_trace_in_which_nobody_comes_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="dropouts has no effect with availability: trace or diurnal"):
        load_config({"availability": "diurnal", "dropouts": True})
    path = tmp_path / "far.csv"
    path.write_text("client,start_s,end_s\n0,1,2\n1,5,5\n2,5,5\n")
    config = load_config({"seed": 1, "availability": {"name": "trace", "file": str(path)}})
    profile = Profile(device_class="a", memory_bytes=1, flops_per_s_fp32=1.0, up_bps=1.0, down_bps=1.0)
    order = presence_of(config, Fleet.from_profiles([profile] * 3), 3).rows
    first_online = order.tolist().index(0)
    if first_online:
        with pytest.raises(ConfigError, match=f"none of the {first_online} clients is ever online"):
            presence_of(config, Fleet.from_profiles([profile] * 3), first_online)
