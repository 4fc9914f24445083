"""Who is on the server: packs for a round, and those of them that are aboard the sweep under way.

Letters of shapes: C clients of a pack, B rows of a batch, N = C * B rows, T tokens, D hidden width, X real
tokens of one client or row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.adapter import Adapter
from fedray.assignment import Assignment
from fedray.model.codecs import Coded
from fedray.seeds import derive_seed
from fedray.server.sweep import Ride
from fedray.training.boundary import Message, coded_states, rows_of_states
from fedray.training.job import Job
from fedray.training.stack import Stack


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it came: hidden states [X, D] and what the loss reads of it."""

    states: Tensor
    token_targets: Mapping[str, Tensor]
    row_targets: Mapping[str, Tensor]


@dataclass(slots=True, kw_only=True, eq=False)
class ServedPack:
    """A pack on the server for a round; ``kept`` are the rows of frozen bottoms by client and row.

    Nothing is trained here for black boxes: ``losses`` are told to them, and they sum them up.
    """

    jobs: Sequence[Job]
    sent: list[Adapter]
    stack: Stack
    losses: list[float]
    kept: dict[tuple[int, int], Row]
    number: int = 0

    @property
    def is_blind(self) -> bool:
        """Whether its clients are black boxes."""
        return self.jobs[0].assignment.is_black_box


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowest:
    """The lowest cut aboard any shard, of black boxes and of the others; None where there is none of them."""

    blind: int | None
    others: int | None

    @staticmethod
    def of(assignments: Iterable[Assignment]) -> "Lowest":
        """Of the packs aboard."""
        cuts: dict[bool, list[int]] = {True: [], False: []}
        for assignment in assignments:
            cuts[assignment.is_black_box].append(assignment.cut)
        return Lowest(blind=min(cuts[True], default=None), others=min(cuts[False], default=None))


@dataclass(slots=True, kw_only=True, eq=False)
class Aboard:
    """A pack in the sweep under way."""

    riders: ServedPack
    places: list[int]  # of the clients in the pack
    lengths: list[Tensor]  # real tokens of each client's rows
    index: Tensor | None
    leaves: dict[str, Tensor]
    ride: Ride
    boundary: Tensor  # what was sent, [N, T, D]: the gradient down is of it
    shape: tuple[int, int]  # B and T

    @property
    def clients(self) -> list[int]:
        """Their ids."""
        return [self.riders.jobs[at].client_id for at in self.places]

    def cropped(self, levelled: Tensor) -> Tensor:
        """Hidden states as the sweep levelled them, back to this pack's own rows and tokens, [N, T, D]."""
        rows, tokens = self.shape
        by_client = levelled.view(len(self.places), -1, *levelled.shape[1:])
        return by_client[:, :rows, :tokens].flatten(0, 1)

    def arrived(self, states: Mapping[int, Coded | None]) -> Tensor:
        """What came for each client, as rows [N, T, D] with zeros at padding."""
        parts = []
        for client, lengths in zip(self.clients, self.lengths, strict=True):
            coded = states[client]
            assert coded is not None
            parts.append(rows_of_states(coded, lengths, self.shape))
        return torch.cat(parts)

    def told(self) -> dict[int, Message]:
        """Its loss to each client."""
        assert self.ride.losses is not None, "the sweep comes first"
        losses = zip(self.clients, self.ride.losses.tolist(), strict=True)
        return {client: Message(loss=loss) for client, loss in losses}

    def messages(self, padded: Tensor, way: str, squares: Sequence[float] | None) -> dict[int, Message]:
        """Rows [N, T, D] to a message for each client."""
        out = {}
        by_client = padded.view(len(self.places), *self.shape, -1)
        for place, (at, lengths) in enumerate(zip(self.places, self.lengths, strict=True)):
            job = self.riders.jobs[at]
            seed = derive_seed(
                job.seed, f"codec {way}", job.round, job.client_id, job.dispatch, self.riders.number
            )
            out[job.client_id] = Message(
                states=coded_states(
                    by_client[place, : len(lengths)], lengths, job.assignment.cut_codec, seed
                ),
                square=None if squares is None else squares[place],
            )
        return out


def mask_of(lengths: Tensor, shape: tuple[int, int]) -> Tensor:
    """1 at real tokens, [B, T]; a filler has one token, since a row of none has nothing to look at."""
    filled = torch.ones(shape[0], dtype=torch.int64, device=lengths.device)
    filled[: len(lengths)] = lengths
    return (torch.arange(shape[1], device=lengths.device) < filled[:, None]).to(torch.int64)
