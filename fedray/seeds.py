"""One seed per purpose, derived from the run's seed and never drawn in sequence.

Nothing may depend on who ran where or when, so every random choice asks for the seed of
(run, purpose, round, client, ...) instead of sharing a generator.
"""

import zlib

import numpy as np


def derive_seed(run_seed: int, purpose: str, *path: int) -> int:
    """A 63-bit seed for one purpose; equal inputs give equal seeds on every machine.

    Args:
        run_seed: the ``seed`` of the configuration.
        purpose: what the numbers are for, such as ``"cohort"`` or ``"batches"``.
        path: round, client and whatever else tells two draws apart; not negative.
    """
    words = [run_seed, zlib.crc32(purpose.encode()), *path]
    state = np.random.SeedSequence(words).generate_state(1, dtype=np.uint64)
    # torch.Generator takes a signed 64-bit seed, so the top bit is dropped.
    return int(state[0] >> np.uint64(1))


def generator(run_seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A numpy generator on `derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, purpose, *path))
