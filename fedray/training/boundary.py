"""What crosses a cut: hidden states of real tokens or their gradient, and what a loss on the server reads.

Padding never crosses: rows travel as their real tokens end to end, with their lengths.

Letters of shapes: N rows, R real rows of one client, T tokens of a padded row, X real tokens of one client,
D hidden width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedray.errors import DataError, TrainingError
from fedray.mechanism import CutNoise
from fedray.model.codecs import Coded, coded_bytes, decode, encode
from fedray.seeds import derive_seed
from fedray.training.data import PADDING
from fedray.training.task import Batch, Task

NUMBER_BYTES = 4  # a row's length, a target, a squared norm, a loss: 32 bits each


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One client's part of a step, up or down.

    Attributes:
        states: hidden states or their gradient, [X, D]; None where the receiver keeps them already.
        lengths: real tokens of each real row, [R] int32; sent up with hidden states.
        token_targets: by feature what the loss reads of each real token, [X]; where the loss lies on the
            server. ``row_targets`` what it reads of each real row, [R].
        square: of the sender's part of the gradient the squared norm, where both sides clip as one.
        loss: of a black-box client's rows, which is all that it gets.
        rows: which of the client's rows these are, [R]: drawn from a seed that both sides know, not sent.
    """

    states: Coded | None = None
    lengths: Tensor | None = None
    token_targets: Mapping[str, Tensor] = field(default_factory=dict)
    row_targets: Mapping[str, Tensor] = field(default_factory=dict)
    square: float | None = None
    loss: float | None = None
    rows: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What crosses the link."""
        plain = [*self.token_targets.values(), *self.row_targets.values()]
        plain += [] if self.lengths is None else [self.lengths]
        return (
            (0 if self.states is None else coded_bytes(self.states))
            + sum(t.numel() * t.element_size() for t in plain)
            + NUMBER_BYTES * ((self.square is not None) + (self.loss is not None))
        )


Messages = Mapping[int, Message]  # by client id
PackMessages = Mapping[int, Messages]  # by place of the pack in the round


def lengths_of(mask: Tensor) -> Tensor:
    """Real tokens of each row, [N] int32. Raises DataError where a row's mask is not ones, then zeros."""
    lengths = mask.sum(1)
    if mask.device.type != "meta" and bool(
        (mask.bool() != (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])).any()
    ):
        raise DataError(
            "A row's attention_mask has a hole; under a cut rows are sent as their first real tokens, so a "
            "mask is ones, then zeros: leave padding at the end, or give no cuts."
        )
    return lengths.to(torch.int32)


def real_tokens(padded: Tensor, lengths: Tensor) -> Tensor:
    """Rows [R, T, ...] to their real tokens end to end, [X, ...]."""
    if padded.device.type == "meta":  # no lengths there: every token is real
        return padded.reshape(-1, *padded.shape[2:]).clone()
    return padded[torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]]


def padded_tokens(tokens: Tensor, lengths: Tensor, shape: tuple[int, int], fill: float = 0) -> Tensor:
    """Real tokens end to end, [X, ...], to rows [R, T, ...] of ``shape`` R, T; padding is ``fill``."""
    rows, width = shape
    if tokens.device.type == "meta":
        return tokens.reshape(rows, width, *tokens.shape[1:]).clone()
    out = tokens.new_full((rows, width, *tokens.shape[1:]), fill)
    out[: len(lengths)][torch.arange(width, device=tokens.device) < lengths[:, None]] = tokens
    return out


def coded_states(padded: Tensor, lengths: Tensor, codec: str, seed: int) -> Coded:
    """The real tokens of rows [R, T, D] as they cross where nothing protects them."""
    return encode(real_tokens(padded.detach(), lengths), codec, seed)


def protected(states: Tensor, noise: CutNoise | None, seed: int) -> Tensor:
    """Tokens' hidden states [X, D] within a norm and with noise, in their own dtype; as they are without."""
    if noise is None or states.device.type == "meta":
        return states
    norms = states.double().norm(dim=1, keepdim=True)
    cut = torch.where(norms > noise.clip_norm, states.double() * (noise.clip_norm / norms), states.double())
    if noise.noise_multiplier:
        random = torch.Generator().manual_seed(derive_seed(seed, "noise on hidden states"))
        drawn = torch.randn(states.shape, generator=random, dtype=torch.float64)
        cut = cut + noise.clip_norm * noise.noise_multiplier * drawn.to(states.device)
    return cut.to(states.dtype)


def rows_of_states(coded: Coded, lengths: Tensor, shape: tuple[int, int]) -> Tensor:
    """What was sent, as rows [R, T, D] with zeros at padding."""
    return padded_tokens(decode(coded), lengths, shape)


def in_32_bits(target: Tensor) -> Tensor:
    """A target as it crosses."""
    return target.to(torch.float32 if target.is_floating_point() else torch.int32)


def numbers_of(values: Tensor) -> list[float]:
    """As plain numbers, [M]; zeros on the meta device, which has none."""
    return [0.0] * len(values) if values.device.type == "meta" else values.tolist()


def padded_target(name: str, sent: Tensor, lengths: Tensor, shape: tuple[int, int]) -> Tensor:
    """A token target [X] as the loss reads it, [R, T]; whole numbers as int64."""
    wide = sent if sent.is_floating_point() else sent.long()
    return padded_tokens(wide, lengths, shape, PADDING.get(name, 0))


def padded_row_target(sent: Tensor, num_rows: int) -> Tensor:
    """A row target [R] as the loss reads it, [N]; whole numbers as int64."""
    wide = sent if sent.is_floating_point() else sent.long()
    return torch.nn.functional.pad(wide, (0, num_rows - len(wide)))


class _Recorded(Mapping[str, Tensor]):
    """A batch that remembers what was read of it."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> Tensor:
        self.read[name] = None
        return self._batch[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class _Answer:
    """Logits of a shape, for a loss that is only watched."""

    def __init__(self, logits: Tensor, own: Batch) -> None:
        self._logits, self._own = logits, own

    def __call__(self, batch: Batch) -> Tensor:
        if batch is not self._own:
            raise TrainingError(
                "This task's loss asks the model about another batch than its own, and under a cut the "
                "server has that batch's hidden states alone; choose another task, or give no cuts."
            )
        return self._logits

    def without_adapter(self, batch: Batch) -> Tensor:
        raise TrainingError(
            "This task's loss asks for the reference model, and under a cut no side has it whole; choose "
            "another task, or give no cuts."
        )


def read_by_loss(task: Task, meta_batch: Batch, num_outputs: int) -> tuple[str, ...]:
    """The features that a task's loss reads beside the model's answer: they go where the loss is.

    Args:
        task: the task.
        meta_batch: on the meta device.
        num_outputs: labels of the head, or the vocabulary of a causal LM.

    Raises:
        TrainingError: for a loss that cannot be computed from one answer to its own batch, or that reads
            more of a row than numbers.
    """
    recorded = _Recorded(meta_batch)
    rows, tokens = meta_batch["attention_mask"].shape
    shape = (rows, num_outputs) if task.head == "classification" else (rows, tokens, num_outputs)
    answer: Any = _Answer(torch.zeros(shape, device="meta"), recorded)
    task.loss(answer, recorded)
    # The mask and which rows are real follow from the lengths.
    targets = sorted(name for name in recorded.read if name not in ("attention_mask", "weight"))
    if arrays := [name for name in targets if meta_batch[name].dim() > 2]:
        raise TrainingError(
            f"This task's loss reads {', '.join(arrays)}, an array a row, and across a cut go numbers of rows"
            " and of tokens alone; choose another task, or give no cuts."
        )
    return tuple(targets)
