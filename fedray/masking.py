"""Pairwise masks in integers: what a client adds to its numbers, and what is left of that when some drop out.

After 1611.04482: every two clients of a round share a seed, from which one adds and the other takes away the
same random words modulo 2^32; every client adds words of a seed of its own, too. In the sum of all the first
cancel. Of those who dropped out the others reveal the shared seeds, of those who came their own ones, never
both of one client: then the server can take away what is left, and knows the sum and nothing else.

It is a simulation of that protocol: the arithmetic and the bytes of the masked numbers are the real ones.
Keys are not agreed on (every seed follows from the run's), secrets are not shared out, and the some 200 bytes
that this costs each pair are not counted. Its threat is a server that follows the protocol and is curious;
one that tells clients other lists of who came, or runs some of them itself, is beyond it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedray.seeds import generator

Words = NDArray[np.uint32]
Floats = NDArray[np.float64]
_SPAN = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """One round's, the same for all its clients.

    Attributes:
        clients: who agreed on seeds, ascending: all that were asked.
        total_weight: of them; an update counts its weight over this.
        shapes: of everything that is trained by anybody, by flat name: all send numbers for all of it.
        fraction_bits: of a number behind the point.
        needed: updates without which the server cannot take the masks away.
    """

    seed: int
    round: int
    clients: tuple[int, ...]
    total_weight: float
    shapes: Mapping[str, tuple[int, ...]]
    fraction_bits: int
    needed: int

    @property
    def length(self) -> int:
        """Numbers of one masked update."""
        return sum(map(prod, self.shapes.values()))

    @property
    def limit(self) -> float:
        """What entries of an update are cut to, so that no sum of them can pass 31 bits."""
        return float(_SPAN // 2 - 1 - len(self.clients)) / float(2**self.fraction_bits)

    def words(self, values: Floats) -> Words:
        """Weighted entries as integers modulo 2^32, to nearest."""
        scaled = np.rint(values * 2**self.fraction_bits).astype(np.int64)
        found: Words = (scaled % _SPAN).astype(np.uint32)
        return found

    def values(self, total: Words) -> Floats:
        """What a sum of such integers stands for."""
        signed: Floats = total.view(np.int32) / 2**self.fraction_bits
        return signed

    def mask_of(self, client: int) -> Words:
        """What a client adds to its words."""
        mask = self._own(client)
        for other in self.clients:
            if other != client:
                mask += self._between(client, other)
        return mask

    def left_in(self, survivors: Collection[int]) -> Words:
        """What masks leave in the sum of those who came."""
        left = np.zeros(self.length, np.uint32)
        gone = [client for client in self.clients if client not in survivors]
        for client in sorted(survivors):
            left += self._own(client)
            for other in gone:
                left += self._between(client, other)
        return left

    def _own(self, client: int) -> Words:
        return self._drawn("own mask", client)

    def _between(self, client: int, other: int) -> Words:
        """The words shared by two, as the first adds them: the smaller id adds what the larger takes away."""
        drawn = self._drawn("pair mask", min(client, other), max(client, other))
        return drawn if client < other else np.negative(drawn)

    def _drawn(self, purpose: str, *path: int) -> Words:
        random = generator(self.seed, purpose, self.round, *path)
        return random.integers(0, _SPAN, self.length, np.uint32)
