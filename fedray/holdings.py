"""What every client holds of the frozen model, so that an offer pays for the bytes that must still reach it.

A piece is a part of the model at a dtype: ``("block.3", "bf16")``. One bit per client and piece.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedray.cost import Ints

Piece = tuple[str, str]


class Holdings:
    """The keyed store of what each client holds; the engine alone writes to it."""

    def __init__(self, num_clients: int, *, preinstalled: bool = False) -> None:
        """Args: ``preinstalled``: every client already holds every piece, and never loses one."""
        self._preinstalled = preinstalled
        self._column: dict[Piece, int] = {}
        self._sizes: Ints = np.zeros(0, np.int64)
        self._held: NDArray[np.bool_] = np.zeros((num_clients, 0), np.bool_)
        self._ever: NDArray[np.bool_] = np.zeros((num_clients, 0), np.bool_)

    @property
    def preinstalled(self) -> bool:
        """Whether every client holds every piece from the start."""
        return self._preinstalled

    @property
    def num_clients(self) -> int:
        """How many clients the store has a row for."""
        return len(self._held)

    def missing_bytes(self, client_ids: Ints, held_bytes: Mapping[str, int], dtype: str) -> Ints:
        """Bytes of these pieces that each client does not hold yet, [clients].

        Args:
            client_ids: rows of the fleet, [clients].
            held_bytes: bytes by piece, as a footprint has them.
            dtype: the pieces'.
        """
        missing = np.zeros(len(client_ids), np.int64)
        if self._preinstalled:
            return missing
        for piece, size in held_bytes.items():
            column = self._column.get((piece, dtype))
            missing += size if column is None else np.where(self._held[client_ids, column], 0, size)
        return missing

    def receive(
        self, client_ids: Ints, held_bytes: Mapping[str, int], dtype: str, storage_bytes: Ints
    ) -> None:
        """These clients now hold these pieces.

        A client whose storage would overflow first gives up every piece that is not among them: it
        pays again if it needs one later.

        Args:
            client_ids: rows of the fleet, [clients], without repeats.
            held_bytes: bytes by piece.
            dtype: the pieces'.
            storage_bytes: of each client, [clients].
        """
        if self._preinstalled:
            return
        columns = [self._column_of((piece, dtype), size) for piece, size in held_bytes.items()]
        rows = self._held[client_ids]
        rows[:, columns] = True
        overflows = rows @ self._sizes > storage_bytes
        rows[np.ix_(overflows, np.setdiff1d(np.arange(len(self._sizes)), columns))] = False
        self._held[client_ids] = rows
        self._ever[np.ix_(client_ids, np.array(columns, np.int64))] = True

    def ever_held(self, client_id: int) -> frozenset[str]:
        """Pieces that have reached a client, given up or not; none of a model that lay there already."""
        own = self._ever[client_id]
        return frozenset(piece for (piece, _), column in self._column.items() if own[column])

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything, as arrays for a checkpoint; `from_arrays` reads them back."""
        return {
            "pieces": np.array([piece for piece, _ in self._column], dtype=np.str_),
            "dtypes": np.array([dtype for _, dtype in self._column], dtype=np.str_),
            "sizes": self._sizes.copy(),
            "held": np.packbits(self._held, axis=1),
            "ever": np.packbits(self._ever, axis=1),
            "num_clients": np.array(self.num_clients),
            "preinstalled": np.array(self._preinstalled),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> "Holdings":
        """The store that `to_arrays` wrote."""
        store = Holdings(int(arrays["num_clients"]), preinstalled=bool(arrays["preinstalled"]))
        names = zip(arrays["pieces"].tolist(), arrays["dtypes"].tolist(), strict=True)
        store._column = {piece: column for column, piece in enumerate(names)}
        store._sizes = arrays["sizes"].astype(np.int64)
        count = len(store._column)
        store._held, store._ever = (
            np.unpackbits(arrays[name].astype(np.uint8), axis=1, count=count).astype(np.bool_)
            for name in ("held", "ever")
        )
        return store

    def _column_of(self, piece: Piece, size: int) -> int:
        if piece not in self._column:
            self._column[piece] = len(self._sizes)
            self._sizes = np.append(self._sizes, np.int64(size))
            self._held, self._ever = (np.pad(bits, ((0, 0), (0, 1))) for bits in (self._held, self._ever))
        column = self._column[piece]
        assert self._sizes[column] == size, f"{piece} was {self._sizes[column]} bytes, now {size}"
        return column
