"""What shipped policies are offered of the model in `fedray.testing.priced_model`, and what they answer."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from fedray.menu import build_menu
from fedray.policy import View
from fedray.policy_loading import load_policy
from fedray.scheduler import ask_menu, decide, price_menu
from fedray.testing import priced_model
from fedray.testing.priced_model import GRID, SERVER, Client

MEMORY = st.integers(90, 170)
RATES = st.sampled_from([5.0, 20.0, 100.0, 1000.0])


def menu_of(**knobs):
    return build_menu(replace(GRID, **knobs))


def cohort_of(memory, flops_per_s=100.0, client_ids=None):
    rates = np.broadcast_to(np.array(flops_per_s, float), len(memory))
    clients = [Client(memory_bytes=m, flops_per_s=r) for m, r in zip(memory, rates.tolist(), strict=True)]
    return priced_model.cohort_of(clients, None if client_ids is None else np.array(client_ids))


def pricing_of(**server):
    return priced_model.pricing_of(replace(SERVER, **server))


def view_of(menu, history=()):
    leakage = {entry.cut: 1 / (1 + entry.cut) for entry in menu if entry.split}
    return View(
        round=1,
        seed=0,
        num_clients=100,
        clients_per_round=8,
        menu=menu,
        history=history,
        leakage=leakage,
    )


def scheduled(name, cohort, menu, options=None, *, state=None, history=(), pricing=None):
    """What the scheduler makes of a shipped policy's answer: it refuses whatever does not fit."""
    policy = load_policy(name, options)
    pricing = pricing or pricing_of()
    offers = price_menu(ask_menu(policy, view_of(menu, history)), cohort, pricing)
    return decide(policy, cohort, offers, state or {}, pricing, together=False)


def given_cuts(schedule):
    """Blocks below the cut of each client, all of them for a whole model, None for nothing."""
    return [None if entry is None else entry.cut for entry in schedule.decision.assignments]


def given_ranks(schedule):
    return [None if entry is None else entry.adapter.ranks for entry in schedule.decision.assignments]


def record_of(client_id, **columns):
    """A client that finished: columns of its record that policies read."""
    facts = {
        "round": 1,
        "client_id": client_id,
        "outcome": "ok",
        "cut": 1,
        "loss": 1.0,
        "num_steps": 2,
        "statistics": {},
    }
    return facts | columns
