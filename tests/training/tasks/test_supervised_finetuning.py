import math
import pickle

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoTokenizer

from fedray.errors import DataError
from fedray.training.data import FILLER, encode
from fedray.training.sources import Source, load_rows
from fedray.training.tasks.supervised_finetuning import SupervisedFinetuning


def test_only_the_answer_is_learnt(stories, through_model):
    model, tokenizer = stories
    task = SupervisedFinetuning()
    rows = [{"prompt": "Who played?", "completion": "Lily played."}, {"prompt": "Say hi", "completion": "hi"}]
    encoded = encode(task, rows, tokenizer, 64)
    batch = encoded.batch(np.arange(2), int(encoded.lengths.max()))
    learnt = [ids[ids != -100] for ids in batch["labels"]]
    assert tokenizer.decode(learnt[0], skip_special_tokens=True).strip() == "Lily played."
    assert learnt[0][-1] == tokenizer.eos_token_id
    losses = task.loss(through_model(model), batch)
    for row in range(2):
        length = encoded.lengths[row]
        theirs = model(
            input_ids=batch["input_ids"][row : row + 1, :length],
            labels=batch["labels"][row : row + 1, :length],
        )
        torch.testing.assert_close(losses[row], theirs.loss, rtol=1e-5, atol=1e-6)


def test_the_plain_template_is_what_the_module_says(stories):
    _, tokenizer = stories
    found = SupervisedFinetuning(input_column="input").features(
        {"prompt": "Add", "input": "1 and 2", "completion": "3"}, tokenizer, 128
    )
    text = tokenizer.decode(found["input_ids"], skip_special_tokens=True)
    assert " ".join(text.split()) == "### Instruction: Add 1 and 2 ### Response: 3"


@pytest.fixture
def chat_tokenizer(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "models" / "stories260K")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_a_chat_template_is_used_and_the_last_answer_learnt(chat_tokenizer):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    task = SupervisedFinetuning(messages_column="talk")
    found = task.features({"talk": messages}, chat_tokenizer, 128)
    prompt = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label == -100]
    learnt = [label for label in found["labels"] if label != -100]
    before = "<user>one</s><assistant>two</s><user>three</s><assistant>"
    assert prompt == chat_tokenizer(before, add_special_tokens=False)["input_ids"]
    assert learnt == chat_tokenizer("four</s>", add_special_tokens=False)["input_ids"]


def test_of_a_long_row_the_prompt_loses_its_beginning_before_the_answer_its_end(stories):
    _, tokenizer = stories
    task = SupervisedFinetuning()
    row = {"prompt": "a b c d e f g h", "completion": "one two three"}
    whole = task.features(row, tokenizer, 512)
    answer = [label for label in whole["labels"] if label != -100]
    short = task.features(row, tokenizer, len(answer) + 2)
    assert short["input_ids"] == whole["input_ids"][-len(answer) - 2 :]
    shortest = task.features(row, tokenizer, 4)
    assert [label for label in shortest["labels"] if label != -100] == answer[:3]
    assert len(shortest["input_ids"]) == 4


@pytest.fixture(scope="module")
def answered(stories, shared, through_model):
    """A batch of real instructions and what the task makes of it, with its filler row."""
    model, tokenizer = stories
    rows = load_rows(Source(name=shared / "data" / "text" / "self_instruct_human.parquet", max_rows=5))
    task = SupervisedFinetuning(
        prompt_column="instruction", input_column="input", completion_column="output", max_new_tokens=8
    )
    encoded = encode(task, rows, tokenizer, 256)
    batch = encoded.batch(np.array([0, 1, 2, 3, 4, FILLER]), int(encoded.lengths.max()))
    with torch.no_grad():
        return task, rows, batch, task.outputs(through_model(model), batch)


def test_greedy_answers_are_those_of_transformers_generate(stories, answered):
    model, tokenizer = stories
    _, _, batch, outputs = answered
    for row in range(5):
        num_prompt = int((batch["labels"][row] != -100).int().argmax())
        prompt = batch["input_ids"][row : row + 1, :num_prompt]
        room = min(8, 256 - num_prompt)
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=room,
            pad_token_id=0,
        )
        wanted = theirs[0, num_prompt:].tolist()
        if wanted[-1] == tokenizer.eos_token_id:
            wanted = wanted[:-1]
        assert outputs[row]["generated"] == wanted


def test_real_instructions_are_scored_between_0_and_1(answered):
    task, rows, _, outputs = answered
    assert len(outputs) == 6
    metrics = task.metrics(outputs[:5], list(rows))
    assert set(metrics) == {"accuracy", "loss", "rouge_l", "token_accuracy", "perplexity"}
    assert 0 <= metrics["accuracy"] <= metrics["rouge_l"] < 1
    assert math.log(metrics["perplexity"]) > 1


def test_exact_match_and_rouge_l_worked_by_hand(stories):
    _, tokenizer = stories
    task = SupervisedFinetuning()
    rows = [{"prompt": "p", "completion": text} for text in ("the cat sat", "the cat sat on the mat")]
    encode(task, rows, tokenizer, 128)
    said = ("the  cat sat", "the mat")
    outputs = [
        {"generated": tokenizer(text)["input_ids"], "loss": 1.0, "num_tokens": 2, "num_correct": 1}
        for text in said
    ]
    metrics = task.metrics(outputs, rows)
    # Row 2: 2 words in common order of 6 wanted and 2 said, so F = 2 * 1 * (1/3) / (4/3) = 0.5.
    assert RougeScorer(["rougeL"]).score("the cat sat on the mat", "the mat")[
        "rougeL"
    ].fmeasure == pytest.approx(0.5)
    assert metrics["accuracy"] == 0.5
    assert metrics["rouge_l"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("task", "row", "sentence"),
    [
        (SupervisedFinetuning(), {"prompt": "p", "completion": " "}, "A row has no answer to learn"),
        (SupervisedFinetuning(), {"text": "p"}, "reads the column 'prompt', and the rows have text"),
        (
            SupervisedFinetuning(messages_column="m"),
            {"m": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]},
            "must end with the assistant's message after others, found user, user",
        ),
    ],
)
def test_a_row_without_an_answer_is_refused(stories, task, row, sentence):
    with pytest.raises(DataError, match=sentence):
        task.features(row, stories[1], 64)


def test_answers_before_any_row_is_encoded_are_refused():
    with pytest.raises(DataError, match="has encoded no row yet"):
        SupervisedFinetuning().metrics([], [])


def test_a_task_travels_with_what_it_learnt(stories):
    task = SupervisedFinetuning(max_new_tokens=3)
    task.features({"prompt": "p", "completion": "c"}, stories[1], 64)
    there = pickle.loads(pickle.dumps(task))
    assert (
        there.metrics(
            [{"generated": [], "loss": 1.0, "num_tokens": 1, "num_correct": 0}],
            [{"prompt": "p", "completion": "c"}],
        )["accuracy"]
        == 0
    )
