import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedray.training.data import FILLER, encode
from fedray.training.sources import Source, load_rows
from fedray.training.tasks.causal_lm import CausalLm
from fedray.training.tasks.supervised_finetuning import SupervisedFinetuning
from fedray.training.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def causal_batch(rows, tokens, seed=0):
    ids = torch.randint(1, 50, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "weight": torch.ones(rows)}


def test_the_mean_over_rows_of_one_length_is_transformers_own_loss(llama, through_model):
    batch = causal_batch(4, 11)
    losses = CausalLm().loss(through_model(llama), batch)
    theirs = llama(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), theirs, rtol=1e-6, atol=0)


def test_a_padded_row_has_the_loss_that_it_has_alone(llama, through_model):
    batch = causal_batch(3, 12)
    batch["attention_mask"] = (torch.arange(12) < torch.tensor([[12], [7], [2]])).long()
    padded = CausalLm().loss(through_model(llama), batch)
    for row, length in enumerate((12, 7, 2)):
        ids = batch["input_ids"][row : row + 1, :length]
        torch.testing.assert_close(padded[row], llama(input_ids=ids, labels=ids).loss, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_transformers_own_too(llama, through_model):
    batch = causal_batch(2, 9)
    weight = llama.model.layers[0].mlp.up_proj.weight
    (ours,) = torch.autograd.grad(CausalLm().loss(through_model(llama), batch).mean(), weight)
    (theirs,) = torch.autograd.grad(
        llama(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss, weight
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("task", [CausalLm(), SupervisedFinetuning()])
def test_the_loss_traces_on_the_meta_device(task, fixed):
    logits = torch.empty(3, 5, 50, device="meta", requires_grad=True)
    ids = torch.empty(3, 5, dtype=torch.int64, device="meta")
    loss = task.loss(fixed(logits), {"input_ids": ids, "attention_mask": ids, "labels": ids})
    loss.sum().backward()
    assert loss.shape == (3,)
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(
    ("dtype", "of_loss"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_are_computed_in_fp32_or_better(dtype, of_loss, fixed):
    logits = torch.randn(1, 3, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "attention_mask": torch.ones(1, 3),
        "label": torch.tensor([2]),
    }
    assert CausalLm().loss(fixed(logits), batch).dtype == of_loss
    assert TextClassification().loss(fixed(logits[:, 0]), batch).dtype == of_loss


def test_a_filler_row_gives_a_number_and_no_gradient(llama, through_model):
    task = CausalLm()
    rows = [{"input_ids": [3, 4, 5]}]

    class Plain:
        pad_token_id = eos_token_id = 0

    class AsTheyAre(CausalLm):
        def features(self, row, tokenizer, max_length):
            return row

    batch = encode(AsTheyAre(), rows, Plain(), 8).batch(np.array([0, FILLER]), 8)
    losses = task.loss(through_model(llama), batch)
    assert losses[1] == 0
    assert torch.isfinite(losses).all()


def test_causal_metrics_worked_by_hand():
    outputs = [
        {"loss": math.log(2), "num_tokens": 3, "num_correct": 3},
        {"loss": math.log(8), "num_tokens": 1, "num_correct": 0},
        {"loss": 0.0, "num_tokens": 0, "num_correct": 0},
    ]
    # Over rows: (ln 2 + ln 8) / 2 = 2 ln 2; over tokens: (3 ln 2 + 3 ln 2) / 4 = 1.5 ln 2.
    metrics = CausalLm().metrics(outputs, [{}] * 3)
    assert metrics["loss"] == pytest.approx(2 * math.log(2))
    assert metrics["perplexity"] == pytest.approx(2**1.5)
    assert metrics["accuracy"] == 0.5


def test_outputs_count_the_tokens_that_came_first(llama, fixed):
    batch = causal_batch(2, 6)
    batch["attention_mask"][1, 4:] = 0
    logits = torch.full((2, 6, 50), -1.0)
    for row, position in ((0, 0), (0, 3), (1, 2), (1, 4)):
        logits[row, position, batch["input_ids"][row, position + 1]] = 1.0
    outputs = CausalLm().outputs(fixed(logits), batch)
    # Position 4 of row 1 predicts padding, which counts for nothing.
    assert [(o["num_tokens"], o["num_correct"]) for o in outputs] == [(5, 2), (3, 1)]


def test_a_pretrained_decoder_knows_its_stories_better_than_shakespeare(stories, shared, through_model):
    model, tokenizer = stories
    turns = load_rows(Source(name=shared / "data" / "text" / "tinyshakespeare_turns.parquet", max_rows=16))
    task = CausalLm()

    def loss_of(rows):
        encoded = encode(task, rows, tokenizer, 64)
        batch = encoded.batch(np.arange(len(encoded)), int(encoded.lengths.max()))
        with torch.no_grad():
            return task.metrics(task.outputs(through_model(model), batch), rows)["loss"]

    story = {
        "text": "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    }
    assert loss_of([story]) < 2 < loss_of(turns)


def test_a_text_that_is_not_cut_ends(stories):
    _, tokenizer = stories
    task = CausalLm()
    whole = task.features({"text": "Once upon a time"}, tokenizer, 64)["input_ids"]
    cut = task.features({"text": "Once upon a time"}, tokenizer, 3)["input_ids"]
    assert whole[-1] == tokenizer.eos_token_id
    assert cut == whole[:3]
    bare = CausalLm(append_eos=False).features({"text": "Once upon a time"}, tokenizer, 64)["input_ids"]
    assert bare == whole[:-1]
