"""How long clients' rows are, and with that how long their batches are on average.

A batch is padded to its own longest row. An epoch's batches are drawn without replacement: of a client with n
rows, c of them no longer than some length, a batch of b is no longer with probability C(c, b) / C(n, b).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedray.assignment import Assignment
from fedray.cost import Floats, Ints, steps_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLengths:
    """Of the training rows of some clients, by what each would be padded to alone.

    Attributes:
        lengths: that there are, ascending, [lengths].
        num_upto: rows no longer than each, [owners, lengths].
        owners: whose rows each client has, [clients]; many devices of a simulation have those of one.
        known: mean lengths of batches, by what they depend on, [owners] each; filled as they are asked for.
    """

    lengths: Ints
    num_upto: Ints
    owners: Ints
    known: dict[tuple[int, int, int | None], Floats] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(rows: Sequence[Ints]) -> "RowLengths":
        """Args: rows: what each row of each client would be padded to alone; at least one a client."""
        owners = np.arange(len(rows))
        lengths, which = np.unique(np.concatenate(rows), return_inverse=True)
        counts = np.zeros((len(rows), len(lengths)), np.int64)
        np.add.at(counts, (np.repeat(owners, [len(own) for own in rows]), which), 1)
        return RowLengths(lengths=lengths, num_upto=counts.cumsum(axis=1), owners=owners)

    def __getitem__(self, clients: Ints) -> "RowLengths":
        """The same for the clients at these positions."""
        return replace(self, owners=self.owners[clients])

    @property
    def shortest(self) -> int:
        """Of all rows."""
        return int(self.lengths[0])

    @property
    def longest(self) -> Ints:
        """Each client's longest row, [clients]."""
        found: Ints = self.lengths[(self.num_upto < self.num_upto[:, -1:]).sum(axis=1)][self.owners]
        return found

    def mean_longest(self, assignment: Assignment) -> Floats:
        """What a batch is padded to, on average over all steps of the assignment, [clients].

        Exact: the batches of an epoch are alike but for its last, which may be of fewer rows.
        """
        key = (assignment.batch_size, assignment.num_epochs, assignment.max_steps)
        if key not in self.known:
            self.known[key] = self._mean_of_steps(assignment)
        return self.known[key][self.owners]

    def _mean_of_steps(self, assignment: Assignment) -> Floats:
        num_rows, size = self.num_upto[:, -1], assignment.batch_size
        whole, left = np.divmod(num_rows, size)
        per_epoch = whole + (left > 0)
        epochs, rest = np.divmod(steps_of(assignment, per_epoch), per_epoch)
        in_whole, in_last = epochs * whole + rest, epochs * (left > 0)
        batches = in_whole * self._of_batch(np.minimum(size, num_rows)) + in_last * self._of_batch(left)
        found: Floats = batches / (in_whole + in_last)
        return found

    def _of_batch(self, num_drawn: Ints) -> Floats:
        """The longest of so many rows, on average, [owners]."""
        num_upto, num_rows = self.num_upto[:, :-1], self.num_upto[:, -1:]
        no_longer = np.ones(num_upto.shape)
        for drawn in range(int(num_drawn.max())):
            share = np.maximum(num_upto - drawn, 0) / np.maximum(num_rows - drawn, 1)
            no_longer *= np.where(drawn < num_drawn[:, None], share, 1.0)
        found: Floats = self.lengths[-1] - no_longer @ np.diff(self.lengths)
        return found
