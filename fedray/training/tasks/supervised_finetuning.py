"""Prompt to answer: the loss is on the answer alone, and greedy answers are compared with the wanted ones.

A model without a chat template gets the plain one::

    ### Instruction:
    {prompt}

    ### Response:
    {completion}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torch.nn import functional

from fedray.errors import DataError
from fedray.training.task import Batch, Forward, Head, cell
from fedray.training.tasks.causal_lm import (
    IGNORED,
    ended,
    row_means,
    token_losses,
    token_metrics,
    token_outputs,
)

PLAIN_PROMPT = "### Instruction:\n{prompt}\n\n### Response:\n"
Message = Mapping[str, str]  # "role" and "content"


@dataclass(kw_only=True)
class SupervisedFinetuning:
    """Learn to answer, from prompts with their completions or from conversations.

    Attributes:
        prompt_column: the instruction.
        input_column: what the instruction is about, put below it after an empty line; optional.
        completion_column: the wanted answer.
        messages_column: conversations instead, lists of ``{"role", "content"}``; the last message is the
            wanted answer and all before it are the prompt.
        max_new_tokens: of a greedy answer, at most.
    """

    prompt_column: str = "prompt"
    input_column: str | None = None
    completion_column: str = "completion"
    messages_column: str | None = None
    max_new_tokens: int = 32
    head: Head = field(default="causal_lm", init=False)
    _tokenizer: Any = field(default=None, init=False, repr=False)
    _max_length: int = field(default=0, init=False, repr=False)

    def labels(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """0: the model has its own head."""
        return 0

    def features(self, row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Mapping[str, Any]:
        """Prompt and answer, and ``labels`` that hold the answer alone.

        Of what is longer than ``max_length`` the prompt loses its beginning, then the answer its end. The
        tokenizer is kept: `outputs` needs its end of text and `metrics` its decoder.

        Raises:
            DataError: for a row without an answer.
        """
        self._tokenizer, self._max_length = tokenizer, max_length
        prompt, answer = self._encoded(self._messages(row), tokenizer)
        if not answer:
            raise DataError(f"A row has no answer to learn ({str(row)[:80]}); fill or drop such rows.")
        answer = answer[: max_length - 1]
        prompt = prompt[-(max_length - len(answer)) :]
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of each row's answer, [rows]."""
        return row_means(*token_losses(forward(batch), batch["labels"]))

    def outputs(self, forward: Forward, batch: Batch) -> list[Mapping[str, Any]]:
        """Of each row the loss on the answer, and ``generated``: the ids of a greedy answer."""
        self._require_tokenizer()
        limit = min(self.max_new_tokens, self._max_length)
        generated = greedy(forward, batch, limit, self._max_length, self._tokenizer.eos_token_id)
        known = token_outputs(forward(batch), batch["labels"])
        return [{**output, "generated": ids} for output, ids in zip(known, generated, strict=True)]

    def metrics(
        self, outputs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """``accuracy`` (exact match but for blanks), ``rouge_l`` (F-measure), ``loss`` and two more."""
        self._require_tokenizer()
        wanted = [" ".join(self._messages(row)[-1]["content"].split()) for row in rows]
        said = [
            " ".join(self._tokenizer.decode(output["generated"], skip_special_tokens=True).split())
            for output in outputs
        ]
        scorer = RougeScorer(["rougeL"])
        pairs = list(zip(wanted, said, strict=True))
        tokens = token_metrics(outputs)
        return {
            "accuracy": float(np.mean([want == say for want, say in pairs])),
            "loss": tokens["loss"],
            "rouge_l": float(np.mean([scorer.score(want, say)["rougeL"].fmeasure for want, say in pairs])),
            "token_accuracy": tokens["accuracy"],
            "perplexity": tokens["perplexity"],
        }

    def _messages(self, row: Mapping[str, Any]) -> list[Message]:
        if self.messages_column is not None:
            messages = list(cell(row, self.messages_column))
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise DataError(
                    f"A conversation in {self.messages_column!r} must end with the assistant's message after "
                    f"others, found {', '.join(message['role'] for message in messages) or 'none'}; "
                    f"cut or drop it."
                )
            return messages
        prompt = str(cell(row, self.prompt_column))
        context = str(cell(row, self.input_column)) if self.input_column is not None else ""
        return [
            {"role": "user", "content": f"{prompt}\n\n{context}" if context else prompt},
            {"role": "assistant", "content": str(cell(row, self.completion_column))},
        ]

    def _encoded(self, messages: list[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
        if not messages[-1]["content"].strip():
            return [], []
        if tokenizer.chat_template:
            before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages, tokenize=False)
            after = whole.removeprefix(before) if whole.startswith(before) else messages[-1]["content"]
            # The template writes the special tokens itself.
            prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        else:
            said = "\n\n".join(message["content"] for message in messages[:-1])
            after = messages[-1]["content"]
            prompt = tokenizer(PLAIN_PROMPT.format(prompt=said))["input_ids"]
            if prompt and prompt[-1] == tokenizer.eos_token_id:
                prompt = prompt[:-1]
        answer = tokenizer(after, add_special_tokens=False)["input_ids"]
        return prompt, ended(answer, tokenizer) if tokenizer.eos_token_id not in answer else answer

    def _require_tokenizer(self) -> None:
        if self._tokenizer is None:
            raise DataError(
                "This task has encoded no row yet, so it has no tokenizer to answer with; encode first."
            )


def greedy(
    forward: Forward, batch: Batch, max_new_tokens: int, max_length: int, eos_id: int | None
) -> list[list[int]]:
    """The likeliest next token, again and again, after each row's prompt; without the end of text.

    The prompt is what precedes the first label. Without a cache, so it works through any `Forward`:
    every new token costs one pass over the rows.

    Args:
        forward: of a causal model, rows padded on the right.
        batch: with ``labels``.
        max_new_tokens: per row.
        max_length: prompt and answer together never grow beyond it.
        eos_id: where an answer ends.
    """
    rows = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
    # A filler row has no label; its prompt is its first token.
    prompts = (batch["labels"] != IGNORED).int().argmax(1).clamp(min=1)
    lengths = prompts.clone()
    ids = functional.pad(batch["input_ids"], (0, max_new_tokens))
    going = lengths < max_length
    rest = {
        name: tensor
        for name, tensor in batch.items()
        if name not in ("input_ids", "attention_mask", "labels")
    }
    for _ in range(max_new_tokens):
        if not going.any():
            break
        width = int(lengths.max())
        mask = (torch.arange(width, device=ids.device) < lengths[:, None]).to(ids.dtype)
        logits = forward({**rest, "input_ids": ids[:, :width], "attention_mask": mask})
        chosen = logits[rows, lengths - 1].argmax(-1)
        if eos_id is not None:
            going = going & (chosen != eos_id)
        ids[rows, lengths] = torch.where(going, chosen, ids[rows, lengths])
        lengths = lengths + going
        going = going & (lengths < max_length)
    return [ids[row, prompts[row] : lengths[row]].tolist() for row in rows.tolist()]
