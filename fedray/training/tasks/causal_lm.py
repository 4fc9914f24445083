"""Text to its own next tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedray.errors import DataError
from fedray.training.task import Batch, Forward, Head, cell

IGNORED = -100


@dataclass(kw_only=True)
class CausalLm:
    """Next-token prediction on a column of text.

    Attributes:
        text_column: the text; what is longer than ``max_length`` tokens is cut.
        append_eos: end every text that is not cut with the tokenizer's end of text, so that a model
            learns to stop.
    """

    text_column: str = "text"
    append_eos: bool = True
    head: Head = field(default="causal_lm", init=False)

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """0: the model has its own head."""
        return 0

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """The text's ids."""
        ids = tokenizer(str(cell(row, self.text_column)), truncation=True, max_length=max_length)["input_ids"]
        if self.append_eos and len(ids) < max_length:
            ids = ended(ids, tokenizer)
        return {"input_ids": ids}

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of each row's next tokens, [rows]."""
        return row_means(*token_losses(forward(batch), _labels(batch)))

    def outputs(self, forward: Forward, batch: Batch) -> list[Mapping[str, Any]]:
        """Of each row the mean loss, the tokens predicted, and how many of them came first."""
        return token_outputs(forward(batch), _labels(batch))

    def metrics(
        self, outputs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """``loss`` and ``accuracy`` (tokens guessed), averaged over rows; ``perplexity`` over all tokens."""
        return token_metrics(outputs)


def _labels(batch: Batch) -> Tensor:
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)


def ended(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids with the tokenizer's end of text, where it has one and it is not there yet."""
    eos = tokenizer.eos_token_id
    return [*ids] if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def next_tokens(labels: Tensor) -> Tensor:
    """What each position has to predict, [rows, tokens]; nothing at the last.

    Labels are shifted and not logits: a slice of logits would be copied whole.
    """
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's negative log-likelihood, 0 where nothing is predicted, and what it predicts.

    In fp32 for half-precision logits. No shape depends on the values, so it traces on the meta device.

    Args:
        logits: [rows, tokens, vocabulary].
        labels: [rows, tokens], unshifted, -100 where a token is not to be learnt.

    Returns:
        Losses and targets, both [rows, tokens].
    """
    targets = next_tokens(labels)
    precise = torch.promote_types(logits.dtype, torch.float32)
    log_likelihood = functional.log_softmax(logits.flatten(0, 1), -1, dtype=precise)
    losses = functional.nll_loss(log_likelihood, targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets.shape), targets


def row_means(losses: Tensor, targets: Tensor) -> Tensor:
    """Mean over the positions of each row that predict something, [rows]; 0 for a row with none."""
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


def token_outputs(logits: Tensor, labels: Tensor) -> list[Mapping[str, Any]]:
    """Of each row: ``loss``, ``num_tokens`` predicted, ``num_correct`` of them."""
    losses, targets = token_losses(logits, labels)
    predicted = targets != IGNORED
    correct = (logits.argmax(-1) == targets).sum(1).tolist()
    means = row_means(losses, targets).tolist()
    return [
        {"loss": loss, "num_tokens": count, "num_correct": right}
        for loss, count, right in zip(means, predicted.sum(1).tolist(), correct, strict=True)
    ]


def token_metrics(outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over rows that predict something: mean ``loss`` and ``accuracy``, ``perplexity`` over their tokens."""
    spoken = [output for output in outputs if output["num_tokens"]]
    if not spoken:
        raise DataError(f"None of {len(outputs)} rows has a token to predict; raise max_length.")
    losses = np.array([output["loss"] for output in spoken])
    tokens = np.array([output["num_tokens"] for output in spoken])
    right = np.array([output["num_correct"] for output in spoken])
    return {
        "accuracy": float((right / tokens).mean()),
        "loss": float(losses.mean()),
        "perplexity": float(np.exp(np.float64(losses @ tokens / tokens.sum()))),
    }
