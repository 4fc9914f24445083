"""Rounds that overlap under cuts: equal to rounds in step where they must be, and resumed as they were."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from fedray.clock import close_trip
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.engine import play_round, resume, run
from fedray.policy import Pace
from test_landing import FEDBUFF, QUIET, SIX, learnt, run_of
from tiny_run import RIDING, assert_same_adapter, assert_same_run, begun, merged, opened, played, save_fleet


@pytest.fixture
def cuts(tmp_path):
    """Every third client keeps the whole model, the others ride a slow server, half of them with a tail."""
    policy = tmp_path / "cuts.py"
    policy.write_text(RIDING)
    return {
        "policy": str(policy),
        "menu": {"cuts": [1, 2], "tails": [0, 1]},
        "server": {"flops_per_s": 1e7, "min_riders": 2, "window_seconds": 0.3},
    }


def test_under_cuts_too_a_round_that_takes_everybody_is_one_in_step(tiny, cuts):
    same = {**cuts, "rounds": {"num_rounds": 2, "clients_per_round": 8}}
    in_step = run_of(tiny, None, **same)
    overlapping = run_of(tiny, {"goal": 8, "late": "join"}, **same)
    assert {record.cut for record in overlapping.clients} == {None, 1}
    assert any(record.waiting_seconds for record in overlapping.clients)
    assert learnt(overlapping) == learnt(in_step)
    assert_same_adapter(overlapping.state.adapter, in_step.state.adapter)
    for one, other in zip(overlapping.rounds, in_step.rounds, strict=True):
        for name in ("virtual_seconds", "waiting_seconds", "joules", "server_joules"):
            assert getattr(one, name) == pytest.approx(getattr(other, name)), name
        assert (one.boundary_up_bytes, one.accuracy) == (other.boundary_up_bytes, other.accuracy)


def test_who_is_on_the_way_keeps_its_room_on_the_server(tiny):
    menu = {"ranks": [2], "depths": ["all"], "cuts": [1], "whole": False}
    config = merged(tiny, {**QUIET, **SIX, "pace": FEDBUFF, "menu": menu, "data": {"max_length": 8}})
    scene, _ = begun(config)
    [entry], server = scene.menu, scene.server
    share = scene.footprint(entry, WorkShape(rows=4, tokens=8, attention="memory_efficient")).server
    for times, together in ((1.5, 1), (2.5, 2)):
        room = sum(server.block_bytes) + int(times * server.needed_bytes(share))
        riders = played(merged(config, {"server": {"memory_bytes": room}})).clients
        at_once = [sum(starts(a) <= starts(r) < ends(a) for a in riders) for r in riders]
        assert max(at_once) == together


def starts(record):
    return record.start_seconds


def ends(record):
    return record.start_seconds + record.virtual_seconds


def test_each_client_takes_the_learning_rate_of_the_round_in_which_it_was_asked(tiny, cuts):
    # Whoever shares a pack; alone each has its own for sure.
    training = {"training": {"lr_scheduler_type": "linear", "optim": "sgd", "learning_rate": 1.0}}
    together, alone = (
        run_of(tiny, FEDBUFF, **SIX, **cuts, **training, packs={"clients_per_pack": size}) for size in (8, 1)
    )
    assert_alike(together.state.adapter, alone.state.adapter)
    assert max(record.staleness for record in alone.clients) > 1


def assert_alike(one, other):
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], rtol=1e-3, atol=1e-5), name


class Stop(Exception):
    """Thrown after a round, as if the process had died there."""


@pytest.mark.parametrize("under_cuts", [False, True])
def test_a_run_that_dies_between_overlapping_rounds_ends_as_an_unbroken_one(tiny, tmp_path, cuts, under_cuts):
    changes = {
        **QUIET,
        **SIX,
        "pace": FEDBUFF,
        "actual": {"compute_jitter": 0.4},
        "menu": {"up_codecs": ["top10"]},
        "aggregation": {"server_optimizer": "momentum"},
    }
    config = load_config(merged(merged(tiny, changes), cuts if under_cuts else {}))

    def die(record):
        if record.round == 3:
            raise Stop

    run(config, tmp_path / "whole")
    with pytest.raises(Stop):
        run(config, tmp_path / "broken", die)
    kept = tmp_path / "broken" / "checkpoint" / "round-000003"
    assert list(kept.glob("version-*.safetensors"))
    if under_cuts:
        riding = json.loads((kept / "facts.json").read_text())["under_way"]["in_transit"]["sweeps"]
        assert any(one["ends"] for _, one in riding["passengers"])
    resume(tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_an_overtaken_update_is_under_a_cut_what_it_is_of_a_whole_model(tiny, tmp_path):
    # A server that takes no time, links likewise, and devices so unlike that they land in the same order.
    rates = [3e5, 1e9, 4e6, 2e9, 5e7, 3e9, 6e8, 4e9]
    links = {"up_bps": [1e15] * 8, "down_bps": [1e15] * 8, "rtt_seconds": [0.0] * 8}
    fleet = save_fleet(tmp_path / "unlike.csv", [4096] * 8, flops_per_s_fp32=rates, **links)
    both = []
    for cut in (True, False):
        policy = tmp_path / f"cut_{cut}.py"
        policy.write_text(
            f"def assign(cohort, offers):\n    return offers.best(offers.cut == {1 if cut else 4})\n"
        )
        changes = {
            "policy": str(policy),
            "fleet": fleet,
            "menu": {"ranks": [2], "depths": ["all"], "cuts": [1]},
            "training": {"optim": "sgd", "learning_rate": 0.3, "max_steps": 2},
        }
        both.append(run_of(tiny, FEDBUFF, **SIX, **changes))
    ridden, whole = both
    assert ({r.cut for r in ridden.clients}, {r.cut for r in whole.clients}) == ({1}, {None})
    told = [[(r.round, r.client_id, r.staleness, r.outcome) for r in one.clients] for one in both]
    assert told[0] == told[1]
    assert max(r.staleness for r in whole.clients if r.outcome == "ok") > 0
    assert_alike(ridden.state.adapter, whole.state.adapter)


def test_who_sets_out_beside_others_looks_at_them_from_the_start(tiny, cuts):
    # Of it, what share of its trip a client does before it drops out is a share.
    rounds = {"num_rounds": 4, "clients_per_round": 4}
    scene, progress, runtime = opened(
        merged(tiny, {**cuts, "pace": {"goal": 1, "late": "join"}, "rounds": rounds})
    )
    with closing(runtime):
        for number in (1, 2, 3):
            play_round(scene, progress, runtime, number)
    way, ended = progress.under_way, {}
    newest = max(way.departures, key=lambda one: one.start_seconds)
    assert newest.share is not None
    assert any(one.share is not None and one.start_seconds < newest.start_seconds for one in way.departures)
    while len(way):
        landing = way.land()
        ended[landing.departure.client_id] = way.now_seconds
    assert newest.end_seconds == pytest.approx(ended[newest.client_id], abs=1e-9)
    alone = close_trip(replace(newest.trip, server=scene.server), Pace(), newest.leave_seconds)
    assert newest.end_seconds > newest.start_seconds + alone.client_seconds[0] + 0.01
