"""Waves: which clients of a pack take their next step together, so that little padding is computed.

Clients are independent, so one may be several steps ahead of another. A wave takes clients whose next
batches are of like length; a client that has finished leaves, and the others fill its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wave:
    """One forward pass: pack positions (ascending) that take their next step, padded to ``tokens``."""

    clients: tuple[int, ...]
    tokens: int


def plan_waves(lengths: Sequence[Sequence[int]], rows: int, tokens_per_wave: int) -> list[Wave]:
    """Every client's steps in their order, grouped into forward passes.

    Args:
        lengths: for each client of the pack, the padded tokens of each of its batches in order.
        rows: of a batch, the same for all.
        tokens_per_wave: at most this many padded tokens in one forward, but at least one client.

    The plan depends on nothing but these arguments. The client with most steps left leads, so that no
    client is left to train alone at the end; those whose next batch is nearest below its length ride along.
    """
    done = [0] * len(lengths)
    waves: list[Wave] = []
    while open_clients := [c for c in range(len(lengths)) if done[c] < len(lengths[c])]:
        left = {c: len(lengths[c]) - done[c] for c in open_clients}
        following = {c: lengths[c][done[c]] for c in open_clients}
        leader = min(open_clients, key=lambda c: (-left[c], -following[c], c))
        tokens = following[leader]
        seats = max(1, tokens_per_wave // (rows * tokens))
        riders = sorted(
            (c for c in open_clients if following[c] <= tokens), key=lambda c: (-following[c], -left[c], c)
        )
        taken = [leader, *(c for c in riders if c != leader)][:seats]
        waves.append(Wave(tuple(sorted(taken)), tokens))
        for client in taken:
            done[client] += 1
    return waves
