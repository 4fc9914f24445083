"""What selections and paces do to rounds, by the clock: claims of their papers, as orderings."""

from dataclasses import replace

import numpy as np
import pytest

from cut_offers import menu_of
from fedray.clock import close_round
from fedray.policy import Pace, View
from fedray.scheduler import price_menu
from fedray.selection import load_selection
from fedray.testing.priced_model import Client, cohort_of, pricing_of
from fedray.trips import Trips

MENU = menu_of(ranks=(2,), depths=("all",), cuts=())
FLEET, ROUNDS = 100, 200
# Heavy-tailed speeds: the slowest of these takes some hundred times as long as the quickest.
SPEEDS = np.sort(100 * np.random.default_rng(3).lognormal(0, 1.2, FLEET))
CLIENTS = [Client(memory_bytes=10**6, flops_per_s=speed) for speed in SPEEDS]
SLOW, QUICK = np.arange(FLEET // 4), np.arange(3 * FLEET // 4, FLEET)


def devices_of(ids):
    return cohort_of([CLIENTS[k] for k in ids.tolist()], ids)


def offers_of(ids):
    return price_menu(MENU, devices_of(ids), pricing_of())


def view_of(number, count):
    return View(
        round=number,
        seed=number,  # the engine derives one of run and round
        num_clients=FLEET,
        clients_per_round=count,
        menu=MENU,
        num_rows=np.full(FLEET, 8),
        cohort_of=devices_of,
        offers_of=offers_of,
    )


def closed_round(ids, pace):
    """These clients' whole trips as compute seconds, with links that take none."""
    cohort, offers = devices_of(ids), offers_of(ids)
    nothing = np.zeros(len(ids), np.int64)
    trips = Trips(
        client_ids=ids,
        device=replace(cohort.device, rtt_seconds=np.zeros(len(ids))),
        fits=offers.fits[0],
        compute_seconds=offers.virtual_seconds[0],
        up_bytes=nothing,
        down_bytes=nothing,
        provision_bytes=nothing,
    )
    return close_round(trips, pace)


def played(name, count, pace=None, options=None):
    """Mean round seconds, and how often each client's update counted, [clients]."""
    selection, state = load_selection(name, options), {}
    counted, seconds = np.zeros(FLEET), []
    for number in range(1, ROUNDS + 1):
        ids, state = selection.select(view_of(number, count), state)
        ids = np.sort(np.asarray(ids))
        closed = closed_round(ids, pace or Pace())
        counted[ids[np.array(closed.outcomes) == "ok"]] += 1
        seconds.append(closed.virtual_seconds)
    return float(np.mean(seconds)), counted


def test_over_selection_shortens_rounds_and_starves_the_slow():
    """Claim R13: 13 are asked for 10 updates (1.3, as Bonawitz et al. 1902.01046)."""
    waits, evenly = played("uniform", 10)
    over, counted = played("uniform", 13, Pace(goal=10))
    assert over < 0.5 * waits
    # Without, who is slow counts as often as who is quick.
    assert evenly[SLOW].sum() == pytest.approx(evenly[QUICK].sum(), rel=0.15)
    assert counted[SLOW].sum() < 0.5 * counted[QUICK].sum()
    assert counted.sum() == evenly.sum() == 10 * ROUNDS


def test_clients_of_one_tier_wait_less_for_each_other_than_clients_drawn_at_random():
    """Claim R14 for TiFL: the mean over tiers of the slowest of ten is less than the slowest of any ten."""
    random, evenly = played("uniform", 10)
    tiers, counted = played("tifl", 10, options={"num_tiers": 5})
    assert tiers < 0.8 * random
    # With all tiers alike nobody is starved for it.
    assert counted[SLOW].sum() == pytest.approx(evenly[SLOW].sum(), rel=0.35)


def test_fedcs_ends_its_rounds_in_time_and_leaves_the_slow_out():
    """Claim R14 for a deadline."""
    random, _ = played("uniform", 10)
    seconds, counted = played("fedcs", 10, options={"deadline_seconds": random / 4})
    assert seconds <= random / 4
    assert counted[SLOW].sum() < 0.5 * counted[QUICK].sum()
