"""One seed per purpose, derived from the run's seed and never drawn in sequence.

Nothing may depend on who ran where or when, so every random choice asks for the seed of
(run, purpose, round, client, ...) instead of sharing a generator.
"""

import zlib

import numpy as np
from numpy.typing import NDArray


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


def uniforms(seed: int, ids: NDArray[np.int64], count: int = 1) -> NDArray[np.float64]:
    """Numbers from 0 to below 1, [ids, count], each a matter of the seed, its id and its place alone.

    What a generator for each of a million clients gives, without a million generators: outputs
    ``id * count + place + 1`` of splitmix64 (Steele et al., OOPSLA 2014) from ``seed``.

    Args:
        seed: from `derive_seed`, of one purpose.
        ids: not negative.
        count: numbers for each id.
    """
    place = ids.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    # Arrays wrap around, as they must.
    z: NDArray[np.uint64] = np.multiply(place, np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    z = np.add(z, np.uint64(seed), dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    found: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found


def weighted_sample(
    seed: int, ids: NDArray[np.int64], weights: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    """``count`` ids, or all there are, one after the other with chances in proportion to weights, no repeats.

    Exponential keys (Efraimidis and Spirakis 2006): the smallest ``-log(u) / weight`` come first, so that an
    id's key is a matter of the seed and itself alone. An id of weight 0 is never taken.
    """
    able = weights > 0
    ids, weights = ids[able], weights[able]
    keys = -np.log1p(-uniforms(seed, ids)[:, 0]) / weights
    return ids[np.lexsort((ids, keys))[:count]]


def generator(run_seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A numpy generator on `derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, purpose, *path))
