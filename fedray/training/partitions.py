"""Who holds which rows: each client's rows for training, validation and test, and unseen clients.

The division itself is flwr-datasets' own; which rows are held out, who stays unseen and every seed
are drawn here from the run's seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from fedray.errors import DataError
from fedray.seeds import generator
from fedray.training.divisions import NaturalId, Part, Partitioning, Rows, natural_parts, synthetic_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOut:
    """What is not trained on.

    Attributes:
        test_share: of the rows, rounded down; so is ``validation_share``.
        per_client: take the shares of every client's own rows; otherwise of all rows alike.
        unseen_clients: how many of the clients never train: a number, or below 1 a share of all of them.
    """

    test_share: float = 0.2
    validation_share: float = 0.0
    per_client: bool = False
    unseen_clients: float = 0

    def __post_init__(self) -> None:
        shares = (self.test_share, self.validation_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise DataError(
                f"test_share and validation_share are 0 or more and leave rows to train on, found "
                f"{self.test_share} and {self.validation_share}; make their sum less than 1."
            )
        if self.unseen_clients < 0 or (
            self.unseen_clients >= 1 and self.unseen_clients != int(self.unseen_clients)
        ):
            raise DataError(
                f"unseen_clients is a whole number or a share below 1, found {self.unseen_clients}; "
                f"write 4 for four clients or 0.1 for a tenth of them."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """Row numbers in rising order; every row of the data set is in exactly one place.

    Attributes:
        train: of each client, by client id.
        test_of: of each client where the hold-out is per client; otherwise empty.
        validation_of: likewise.
        test: all test rows; ``validation`` likewise. None of them belongs to an unseen client.
        unseen: all rows of each unseen client.
        unused: left out by ``min_rows``, ``max_clients`` or a label that no client drew.
        names: of each client, where a column names them; otherwise empty. ``unseen_names`` likewise.
    """

    train: tuple[Rows, ...]
    test_of: tuple[Rows, ...]
    validation_of: tuple[Rows, ...]
    test: Rows
    validation: Rows
    unseen: tuple[Rows, ...]
    unused: Rows
    names: tuple[str, ...]
    unseen_names: tuple[str, ...]

    @property
    def num_clients(self) -> int:
        """Clients that train."""
        return len(self.train)

    @property
    def num_rows(self) -> Rows:
        """Training rows of each client, [clients]."""
        return np.array([len(rows) for rows in self.train], np.int64)


_UNUSED, _TRAIN, _VALIDATION, _TEST, _UNSEEN = range(5)


def partition(
    rows: datasets.Dataset,
    how: Partitioning,
    hold_out: HoldOut,
    *,
    seed: int,
    size_rank: NDArray[Any] | None = None,
) -> Partitions:
    """Divide the rows among clients; equal arguments give equal partitions everywhere.

    Rows held out of all alike are drawn before synthetic clients are formed; where clients are natural,
    out of the rows of those that train, so that an unseen client keeps every row of its own.

    Args:
        rows: the data set.
        how: the division.
        hold_out: test, validation and unseen clients.
        seed: of the run.
        size_rank: of each client, [clients]; the higher it is, the more rows the client gets.

    Raises:
        DataError: for a missing column, or a division that leaves a client without training rows.
    """
    place = np.full(len(rows), _TRAIN)
    early = not isinstance(how, NaturalId) and not hold_out.per_client
    if early:
        _hold_out(place, np.arange(len(rows)), hold_out, seed)
    pool = np.flatnonzero(place == _TRAIN)
    parts = natural_parts(rows, how) if isinstance(how, NaturalId) else synthetic_parts(rows, how, pool, seed)
    training, unseen = _chosen(parts, how, hold_out, seed)
    place[pool] = _UNUSED
    place[_joined(training)] = _TRAIN
    place[_joined(unseen)] = _UNSEEN
    if hold_out.per_client:
        for client, part in enumerate(training):
            _hold_out(place, part.rows, hold_out, seed, client)
    elif not early:
        _hold_out(place, _joined(training), hold_out, seed)
    return _collected(place, _by_size(place, training, size_rank), unseen, per_client=hold_out.per_client)


def _hold_out(place: Rows, among: Rows, hold_out: HoldOut, seed: int, *path: int) -> None:
    """Mark test and validation rows; rounding down always leaves one row to train on."""
    order = generator(seed, "held-out rows", *path).permutation(among)
    # The sum of a share and rounding noise must not lose a row: 0.29 * 100 is 28.999999999999996.
    num_test = int(hold_out.test_share * len(among) + 1e-9)
    num_validation = int(hold_out.validation_share * len(among) + 1e-9)
    place[order[:num_test]] = _TEST
    place[order[num_test : num_test + num_validation]] = _VALIDATION


def _chosen(
    parts: Sequence[Part], how: Partitioning, hold_out: HoldOut, seed: int
) -> tuple[list[Part], list[Part]]:
    """Clients that train and unseen ones, drawn by the seed, each in the order of the parts."""
    cap = how.max_clients if isinstance(how, NaturalId) else None
    total = len(parts) if cap is None else min(cap, len(parts))
    share = hold_out.unseen_clients
    num_unseen = int(share) if share >= 1 else round(total * share)
    if num_unseen >= total:
        raise DataError(
            f"{num_unseen} unseen clients were asked for, and there are {total} clients in all; "
            f"leave some to train: lower unseen_clients or form more clients."
        )
    order = generator(seed, "clients").permutation(len(parts))[:total]
    unseen, training = np.sort(order[:num_unseen]), np.sort(order[num_unseen:])
    return [parts[at] for at in training], [parts[at] for at in unseen]


def _by_size(place: Rows, training: list[Part], size_rank: NDArray[Any] | None) -> list[Part]:
    sizes = [int((place[part.rows] == _TRAIN).sum()) for part in training]
    empty = [client for client, size in enumerate(sizes) if size == 0]
    if empty:
        first = training[empty[0]]
        raise DataError(
            f"{len(empty)} of {len(training)} clients have no rows to train on, the first is client "
            f"{empty[0]}{f' ({first.name})' if first.name else ''} with {len(first.rows)} before the "
            f"hold-out; use fewer clients, a larger minimum of rows, a larger alpha, or hold out per client."
        )
    if size_rank is None:
        return training
    if len(size_rank) != len(training):
        raise DataError(
            f"size_rank needs one number per client: {len(training)} clients, {len(size_rank)} numbers."
        )
    ordered = [training[at] for at in np.argsort(sizes, kind="stable")]
    places = np.argsort(np.argsort(size_rank, kind="stable"), kind="stable")
    return [ordered[at] for at in places]


def _collected(place: Rows, training: list[Part], unseen: list[Part], *, per_client: bool) -> Partitions:
    def at(kind: int) -> tuple[Rows, ...]:
        return tuple(part.rows[place[part.rows] == kind] for part in training)

    return Partitions(
        train=at(_TRAIN),
        test_of=at(_TEST) if per_client else (),
        validation_of=at(_VALIDATION) if per_client else (),
        test=np.flatnonzero(place == _TEST),
        validation=np.flatnonzero(place == _VALIDATION),
        unseen=tuple(part.rows for part in unseen),
        unused=np.flatnonzero(place == _UNUSED),
        names=tuple(part.name for part in training if part.name),
        unseen_names=tuple(part.name for part in unseen if part.name),
    )


def _joined(parts: Sequence[Part]) -> Rows:
    return np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
