"""The task's contract: features of a row, one loss per row, what to keep for the metrics.

A task is a file like a policy, found by name or by path. Its loss gives one value per row and never
mixes rows, so rows of many clients can share one forward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

Batch = Mapping[str, Tensor]  # every tensor is [rows, ...]; input_ids and attention_mask are [rows, tokens]


class Forward(Protocol):
    """The model under the clients' adapters, as a loss sees it."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits: [rows, labels] for a classification head, [rows, tokens, vocabulary] for a causal LM."""

    def without_adapter(self, batch: Batch) -> Tensor:
        """The reference model's logits, without gradient."""


class Task(Protocol):
    """What is learnt."""

    head: Literal["classification", "causal_lm"]

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many outputs the head needs for these rows (causal LM: 0, the model has its own)."""

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """One row's ``input_ids`` (list) and, by name, lists as long as they are, or single numbers."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """One value per row, [rows]."""

    def outputs(self, forward: Forward, batch: Batch) -> list[Mapping[str, Any]]:
        """What `metrics` needs of each row, as plain numbers; called without gradient."""

    def metrics(self, outputs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """``accuracy`` and ``loss`` (both averages over rows) and any others."""
