"""What rounds use up of a client's privacy, against dp_accounting's own and closed forms."""

import math

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.mechanism import Mechanism, most_updates
from fedray.policy import Pace, View
from fedray.policy_loading import adapt_policy, load_policy
from fedray.privacy import mechanism_of, sampling_rate
from fedray.selection import load_selection, selected_by

DELTA = 1e-5


def mechanism(where="central", sampling="fixed_size", noise_multiplier=1.0):
    return Mechanism(
        where=where, clip_norm=0.5, noise_multiplier=noise_multiplier, delta=DELTA, sampling=sampling
    )


def exact_gaussian(multiplier):
    """Epsilon of one release of a Gaussian mechanism (Balle and Wang, 1805.06530, theorem 8)."""

    def excess(epsilon):
        half = 1 / (2 * multiplier)
        return (
            norm.cdf(half - epsilon * multiplier)
            - math.exp(epsilon) * norm.cdf(-half - epsilon * multiplier)
            - DELTA
        )

    return brentq(excess, 0.0, 100.0)


def test_each_client_drawn_for_itself_is_dp_accountings_sampled_gaussian():
    orders = list(range(2, 600))
    theirs = RdpAccountant(orders, NeighboringRelation.ADD_OR_REMOVE_ONE)
    theirs.compose(dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.0)), 10)
    ours = mechanism(sampling="poisson").epsilon([0.25] * 10, 0)
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)
    # Its tightest accountant, of privacy loss distributions, is below it and not far.
    tightest = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    tightest.compose(dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.0)), 10)
    assert tightest.get_epsilon(DELTA) < ours < 1.25 * tightest.get_epsilon(DELTA)


def test_a_cohort_of_a_fixed_size_is_dp_accountings_sample_without_replacement_at_half_the_multiplier():
    theirs = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    event = dp_event.SampledWithoutReplacementDpEvent(32, 8, dp_event.GaussianDpEvent(0.5))
    theirs.compose(event, 3)
    assert mechanism().epsilon([0.25] * 3, 0) == pytest.approx(theirs.get_epsilon(DELTA))


def test_rounds_of_unlike_rates_are_composed_whatever_their_order():
    theirs = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    for size in (4, 16, 4):
        theirs.compose(dp_event.SampledWithoutReplacementDpEvent(32, size, dp_event.GaussianDpEvent(0.5)))
    assert mechanism().epsilon([0.125, 0.5, 0.125], 0) == pytest.approx(theirs.get_epsilon(DELTA))
    assert mechanism().epsilon([0.5, 0.125, 0.125], 0) == pytest.approx(theirs.get_epsilon(DELTA))


@pytest.mark.parametrize("multiplier", [0.8, 2.0, 8.0])
def test_one_local_update_is_a_gaussian_of_half_the_multiplier_close_to_the_exact_epsilon(multiplier):
    exact = exact_gaussian(multiplier / 2)
    assert exact < mechanism("local", noise_multiplier=multiplier).epsilon([], 1) < 1.2 * exact
    # k of them are one of a multiplier smaller by the root of k.
    four = mechanism("local", noise_multiplier=2 * multiplier).epsilon([], 4)
    assert four == pytest.approx(mechanism("local", noise_multiplier=multiplier).epsilon([], 1))


def test_without_noise_nothing_is_promised_and_without_a_release_nothing_is_used_up():
    assert mechanism(noise_multiplier=0.0).epsilon([0.5], 1) is None
    assert mechanism("local").epsilon([], 0) == 0.0


def test_a_late_update_was_sent_and_one_of_a_client_that_dropped_out_was_not():
    outcomes = [(1, "ok"), (1, "late"), (2, "ok"), (2, "dropped"), (2, "failed"), (2, "oom")]
    assert most_updates(outcomes) == 2
    assert most_updates([]) == 0


def view(**given):
    return View(round=1, seed=3, num_clients=40, clients_per_round=10, menu=(), **given)


def test_the_chance_to_be_asked_is_among_those_who_may_be_and_for_poisson_among_all():
    half = {"may_be_asked": lambda ids: ids % 2 == 0}
    assert sampling_rate(mechanism(), view()) == 0.25
    assert sampling_rate(mechanism(), view(**half)) == 0.5
    assert sampling_rate(mechanism(sampling="poisson"), view(**half)) == 0.25
    assert sampling_rate(mechanism("local"), view()) is None
    assert sampling_rate(None, view()) is None


def test_poisson_draws_each_client_for_itself_and_so_many_on_average():
    chosen = load_selection("poisson")
    sizes, asked = [], np.zeros(40)
    for seed in range(400):
        ids, _ = chosen.select(View(round=1, seed=seed, num_clients=40, clients_per_round=10, menu=()), {})
        sizes.append(len(ids))
        asked[ids] += 1
    # A binomial of 40 and 1/4: mean 10, variance 7.5; three standard errors of 400 draws.
    assert np.mean(sizes) == pytest.approx(10, abs=3 * math.sqrt(7.5 / 400))
    assert np.var(sizes) == pytest.approx(7.5, rel=0.25)
    assert asked.min() > 400 * 0.25 - 4 * math.sqrt(400 * 0.1875)


def agreed(where="central", policy="largest_that_fits", selection=None, pace=None, options=None):
    tree = {"privacy": {"where": where, "clip_norm": 1.0}}
    loaded = load_policy(policy)
    if selection is not None:
        tree["selection"] = {"name": selection, "options": options or {}}
        loaded = selected_by(load_selection(selection, options), loaded)
    return mechanism_of(load_config(tree), loaded, pace or Pace())


def test_the_selection_says_how_clients_are_drawn():
    assert agreed().sampling == agreed(selection="uniform").sampling == "fixed_size"
    assert agreed(selection="poisson").sampling == "poisson"
    assert mechanism_of(load_config({}), load_policy("largest_that_fits"), Pace()) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"pace": Pace(goal=2)}, r"pace\.goal: 2 makes it a matter of the other clients"),
        ({"pace": Pace(late="join", goal=2)}, r"pace\.late: join makes it a matter of the other"),
        ({"selection": "oort"}, "asks clients for squared_loss, which no noise protects"),
        ({"selection": "tifl"}, "counts on clients that are drawn by lot among all"),
        ({"selection": "uniform", "options": {"online": True}}, "drawn by lot among all"),
        ({"policy": "dtfl"}, "learns from records of clients"),
        ({"where": "local", "policy": "hetlora"}, "asks clients for kept_rank, which no noise protects"),
    ],
)
def test_what_would_break_the_promise_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        agreed(**given)


def test_a_policy_that_chooses_clients_itself_is_refused():
    class FirstOnes:
        def select(self, view, state):
            return list(range(view.clients_per_round))

        def assign(self, cohort, offers):
            return offers.best(offers.sum_of_ranks)

    config = load_config({"privacy": {"where": "central", "clip_norm": 1.0}})
    with pytest.raises(ConfigError, match="drawn by lot among all, and 'FirstOnes' chooses them"):
        mechanism_of(config, adapt_policy(FirstOnes), Pace())


def test_a_local_promise_holds_whoever_is_asked_and_whenever_rounds_close():
    assert agreed("local", selection="tifl", pace=Pace(goal=2)).where == "local"
