"""Seeds: equal inputs give equal seeds on every machine, anything else gives another."""

import itertools

import numpy as np
import pytest

from fedray.seeds import derive_seed, generator


def test_seeds_are_the_ones_that_numpy_derives_from_run_purpose_and_path():
    # CRC-32 of "123456789" is 0xCBF43926 by its published check value.
    state = np.random.SeedSequence([7, 0xCBF43926, 1, 2]).generate_state(1, dtype=np.uint64)[0]
    assert derive_seed(7, "123456789", 1, 2) == int(state) // 2


def test_runs_purposes_rounds_and_clients_get_seeds_of_their_own():
    places = itertools.product((0, 1), ("cohort", "batches"), range(10), range(10))
    seeds = [derive_seed(run, purpose, *path) for run, purpose, *path in places]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_round_1_client_2_is_not_round_2_client_1():
    assert derive_seed(0, "batches", 1, 2) != derive_seed(0, "batches", 2, 1)


def test_a_generator_draws_the_same_whoever_asked_before():
    generator(0, "cohort", 1).random(5)
    assert generator(0, "cohort", 2).random(3).tolist() == generator(0, "cohort", 2).random(3).tolist()


def test_a_negative_place_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        derive_seed(0, "cohort", -1)
