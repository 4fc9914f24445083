"""Work H: unlike clients, as devices are. Sizes, lengths, ranks and depths differ from client to client."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from works import VOCABULARY

WIDTH, BLOCKS, CLIENTS, ROUNDS = 128, 4, 128, 4
BATCH = 4
RANKS = (2, 4, 8, 16)
DEPTHS = (1, 2, 3, 4)
ROWS = (4, 64)  # of a client, at least and at most
TOKENS = (8, 64)  # of a row, at least and at most
MEDIAN_TOKENS, SIGMA_TOKENS = 24, 0.5
CLIPS_PER_ROW = 8

# Speech Commands v2 as FedScale divides it among speakers: clips of a speaker, median 30; the spread of
# their logarithms is 0.6. Drawn from a log-normal where the table itself is not at hand.
SIZES = Path(__file__).parents[2] / "shared/data/devices/speech_commands_client_sizes.parquet"
MEDIAN_CLIPS, SIGMA_CLIPS = 30, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client: its rows of token ids in the order of its batches, and what it trains."""

    rows: list[Tensor]
    rank: int
    depth: int

    @property
    def layers(self) -> list[int]:
        """The trained blocks: the top ones."""
        return list(range(BLOCKS - self.depth, BLOCKS))

    @property
    def tokens(self) -> int:
        """Real tokens of its epoch."""
        return sum(len(row) for row in self.rows)


def draw(seed: int) -> list[Client]:
    """The clients of this seed."""
    random = np.random.default_rng(seed)
    clips = _clips(random)
    clients = []
    for count in np.clip(clips // CLIPS_PER_ROW, *ROWS):
        tokens = MEDIAN_TOKENS * np.exp(SIGMA_TOKENS * random.standard_normal(count))
        lengths = np.clip(np.rint(tokens), *TOKENS).astype(int)
        clients.append(
            Client(
                rows=[torch.from_numpy(random.integers(0, VOCABULARY, length)) for length in lengths],
                rank=int(random.choice(RANKS)),
                depth=int(random.choice(DEPTHS)),
            )
        )
    return clients


def source_of_sizes() -> str:
    """Words for where the clients' sizes come from."""
    if SIZES.is_file():
        return "sizes of Speech Commands speakers"
    return (
        f"sizes log-normal, median {MEDIAN_CLIPS / CLIPS_PER_ROW:g} rows and sigma {SIGMA_CLIPS}, "
        f"because {SIZES.name} is not beside the checkout"
    )


def _clips(random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if SIZES.is_file():
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(SIZES, columns=["samples"])
        return random.choice(table["samples"].to_numpy(), CLIENTS)
    return np.rint(np.exp(math.log(MEDIAN_CLIPS) + SIGMA_CLIPS * random.standard_normal(CLIENTS))).astype(
        np.int64
    )


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows as a batch: ids and mask, [rows, longest]."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
