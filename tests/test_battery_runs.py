"""Runs on batteries: who is not asked, who runs empty, what a policy sees, and a run that is resumed."""

import numpy as np
import pytest

from fedray import checkpoint
from fedray.battery import Charges
from fedray.config import load_config
from fedray.engine import play_round
from fedray.errors import ConfigError
from fedray.fleet import Fleet, Profile
from fedray.planning import plan
from fedray.readiness import Readiness
from fedray.rounds import pricing_of
from fedray.scene import set_scene
from fedray.scheduler import price_menu
from fedray.traces import load_sessions
from tiny_run import begun, merged, opened, played, save_fleet

WATTS = {"compute_watts": [5.0] * 8, "idle_watts": [1.0] * 8}


def config_of(tiny, tmp_path, *, joules, watts=None, battery=None, **changes):
    columns = {**WATTS, "battery_joules": joules, "charge_watts": watts or [0.0] * 8}
    fleet = save_fleet(tmp_path / "fleet.csv", **columns)
    plain = {"fleet": fleet, "audit": {"distinct": False}, "battery": battery or {}}
    return merged(tiny, {**plain, "provision": "preinstalled", **changes})


def trace(tmp_path, spans):
    path = tmp_path / "charging.csv"
    rows = [f"{client},{start},{end}" for client, (start, end) in enumerate(spans)]
    path.write_text("client,start_s,end_s\n" + "\n".join(rows) + "\n")
    return {"name": "trace", "file": str(path), "period_seconds": 100_000.0}


@pytest.fixture(scope="module")
def once(tiny, tmp_path_factory):
    """Of one round on mains what each client's work takes, [clients] in joules."""
    fleet = save_fleet(tmp_path_factory.mktemp("once") / "fleet.csv", **WATTS)
    rounds = {"rounds": {"num_rounds": 1, "clients_per_round": 8}, "audit": {"distinct": False}}
    config = merged(tiny, {**rounds, "fleet": fleet, "provision": "preinstalled"})
    records = sorted(played(config).clients, key=lambda r: r.client_id)
    assert [r.client_id for r in records] == list(range(8))
    return np.array([r.joules for r in records])


def test_what_a_round_takes_is_gone_in_the_next_and_who_has_too_little_is_not_asked(tiny, tmp_path, once):
    # Enough for two rounds and the reserve, or for one.
    joules = [(2.5 if k % 2 else 1.5) * once[k] / 0.8 for k in range(8)]
    rounds = {"num_rounds": 2, "clients_per_round": 8}
    battery = {"charging": "never"}
    progress = played(config_of(tiny, tmp_path, joules=joules, battery=battery, rounds=rounds))
    asked = {n: {r.client_id: r for r in progress.clients if r.round == n} for n in (1, 2)}
    assert set(asked[1]) == set(range(8))
    assert {asked[1][k].charge_joules for k in range(8)} == set(joules)
    # Whoever has less than the cheapest work on the menu takes above its reserve is offline.
    assert set(asked[2]) >= {1, 3, 5, 7}
    for client, record in asked[2].items():
        assert record.charge_joules == pytest.approx(joules[client] - asked[1][client].joules)
        assert record.charge_joules - record.joules >= 0.2 * joules[client] - 1e-9
    assert {record.outcome for record in progress.clients} == {"ok"}


def test_who_is_taken_off_the_charger_runs_empty_at_work_and_drops_out(tiny, tmp_path, once):
    # A tenth of what the work takes, and a charger for a moment within the first round trip.
    joules = once.tolist()
    battery = {"start_share": 0.1, "charging": trace(tmp_path, [(0, 1 / 32)] * 8)}
    rounds = {"num_rounds": 1, "clients_per_round": 8}
    progress = played(config_of(tiny, tmp_path, joules=joules, battery=battery, rounds=rounds))
    assert {record.outcome for record in progress.clients} == {"dropped"}
    assert {record.message for record in progress.clients} == {"its battery was empty"}
    for record in progress.clients:
        # So long at 1 W off the mains, the rest out of the battery.
        assert record.joules == pytest.approx(1 / 32 + 0.1 * once[record.client_id], rel=1e-9)
    assert progress.rounds[0].num_dropped == 8


def test_a_battery_on_the_charger_all_the_time_gains_from_one_round_to_the_next(tiny, tmp_path, once):
    spans = [(0, 100_000)] * 8
    battery = {"start_share": 0.5, "charging": trace(tmp_path, spans)}
    config = config_of(
        tiny, tmp_path, joules=[1000.0] * 8, watts=[3.0] * 8, battery=battery,
        rounds={"num_rounds": 2, "clients_per_round": 8},
    )  # fmt: skip
    clients = played(config).clients
    rounds = [{r.client_id: r for r in clients if r.round == n} for n in (1, 2)]
    for client, later in rounds[1].items():
        assert rounds[0][client].charge_joules == 500.0
        assert later.charge_joules == pytest.approx(500.0 + 3.0 * later.start_seconds)
        assert later.start_seconds > 0


def test_a_round_waits_until_somebody_is_charging_where_nobody_has_enough(tiny, tmp_path, once):
    spans = [(500 + 10 * k, 600 + 10 * k) for k in range(8)]
    battery = {"start_share": 0.1, "charging": trace(tmp_path, spans)}
    config = config_of(
        tiny, tmp_path, joules=once.tolist(), watts=[2.0] * 8, battery=battery,
        rounds={"num_rounds": 1, "clients_per_round": 8},
    )  # fmt: skip
    (record,) = played(config).clients
    assert record.start_seconds == 500.0
    assert record.outcome == "ok"
    with pytest.raises(ConfigError, match=r"Round 1 can never begin: none of 8 clients is ever online"):
        played(merged(config, {"battery": {"charging": {"name": "never"}}}))


def test_a_resumed_run_goes_on_with_the_batteries_as_they_were(tiny, tmp_path, once):
    battery = {"charging": {"name": "daily", "hours": 6.0}, "start_share": 0.9}
    config = config_of(
        tiny, tmp_path, joules=(3 * once).tolist(), watts=[0.001] * 8, battery=battery,
        rounds={"num_rounds": 3, "clients_per_round": 6},
    )  # fmt: skip
    scene, progress, runtime = opened(config)
    try:
        play_round(scene, progress, runtime, 1)
        (tmp_path / "run").mkdir()
        checkpoint.save(tmp_path / "run", progress)
        again = checkpoint.load(tmp_path / "run")
        for number in (2, 3):
            for one in (progress, again):
                play_round(scene, one, runtime, number)
    finally:
        runtime.close()

    def told(one):
        return [(r.round, r.client_id, r.charge_joules, r.joules, r.loss) for r in one.clients]

    assert told(again) == told(progress)
    assert len({r.charge_joules for r in progress.clients}) > 8


def test_a_policy_sees_what_is_left_and_is_offered_no_work_that_would_take_the_reserve(tiny, tmp_path, once):
    scene, progress = begun(
        config_of(tiny, tmp_path, joules=(10 * once).tolist(), battery={"charging": "never"})
    )
    everybody = np.arange(8)
    charges = Charges()
    left = 2 * once + 0.5 * once  # the reserve of a fifth, and half of the work
    charges.leave(scene.batteries, everybody, left, np.zeros(8))
    pricing = pricing_of(scene, progress, 1)
    cohort = Readiness(scene=scene, number=1, charges=charges, pricing=pricing).cohort(everybody, 5.0)
    assert cohort.charge_joules.tolist() == left.tolist()
    assert cohort.spare_joules.tolist() == pytest.approx((0.5 * once).tolist())
    offers, on_mains = (price_menu(scene.menu, one, pricing) for one in (cohort, scene.cohort(1, everybody)))
    costly = offers.joules > cohort.spare_joules
    assert on_mains.fits[costly].any()
    assert not offers.fits[costly].any()
    assert (offers.fits[~costly] == on_mains.fits[~costly]).all()
    assert cohort.take(np.array([3])).spare_joules.tolist() == cohort.spare_joules[[3]].tolist()


def test_a_plan_says_that_a_battery_does_not_bear_the_work(tiny, tmp_path):
    config = config_of(tiny, tmp_path, joules=[1e9] * 7 + [0.01], battery={"charging": "never"})
    last = plan(load_config(config)).clients[-1]
    assert last.assignment is None
    assert last.num_offers == 0
    assert "out of its battery at least" in last.reason
    assert "which may spare 0.008 J" in last.reason


# So slow a server that who sets out finds others aboard.
CUTS = {
    "menu": {"ranks": [2], "cuts": [1], "tails": [0], "whole": False},
    "server": {"flops_per_s": 1e7},
    "policy": "deepest_cut",
}


@pytest.mark.parametrize(("times", "cuts"), [(2.2, {}), (30, CUTS)], ids=["whole models", "cuts"])
def test_rounds_that_overlap_empty_batteries_too(tiny, tmp_path, once, times, cuts):
    pace = {"late": "join", "goal": 2}
    config = config_of(
        tiny, tmp_path, joules=(times * once / 0.8).tolist(), battery={"charging": "never"}, pace=pace,
        rounds={"num_rounds": 4, "clients_per_round": 4}, aggregation="factor_mean", **cuts,
    )  # fmt: skip
    by_client = {}
    for record in played(config).clients:
        before = by_client.setdefault(record.client_id, [])
        if before:
            assert record.charge_joules == pytest.approx(before[-1].charge_joules - before[-1].joules)
        before.append(record)
    assert max(map(len, by_client.values())) >= 2


def profile(**changes):
    plain = {"device_class": "a", "memory_bytes": 1, "flops_per_s_fp32": 1.0, "up_bps": 1.0, "down_bps": 1.0}
    return Profile(**plain, **changes)


def test_what_cannot_take_effect_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"charge_watts is 5 in row 1, which has no battery to charge"):
        Fleet.from_profiles([profile(), profile(charge_watts=5.0)])
    with pytest.raises(ConfigError, match=r"no profile of the fleet has battery_joules; drop it"):
        set_scene(load_config(merged(tiny, {"battery": {"reserve_share": 0.5}})), None)
    central = {
        "privacy": {"where": "central", "clip_norm": 1.0},
        "aggregation": {"name": "factor_mean", "options": {"mode": "zero_pad"}, "weights": "uniform"},
    }
    config = config_of(tiny, tmp_path, joules=[10.0] * 8, **central)
    with pytest.raises(ConfigError, match=r"whoever has worked its battery empty is not asked"):
        set_scene(load_config(config), None)


def test_of_a_phones_log_it_is_charging_that_counts(tmp_path):
    lines = ["00:00:00\tscreen_unlock", "00:00:10\tbattery_charged_on", "00:00:40\tbattery_charged_off"]
    log = "\n".join(f"2020-01-02 {line}" for line in [*lines, "00:01:40\tscreen_lock"])
    path = tmp_path / "phones.json"
    path.write_text(f'{{"a": {{"messages": {log!r}}}}}'.replace("'", '"'))
    found = load_sessions(path, charging=True)
    assert (found.starts.tolist(), found.ends.tolist(), found.period_seconds.tolist()) == ([10], [40], [100])
