import sys

import numpy as np
import pytest
import torch

from fedray.errors import ConfigError
from fedray.training.data import FILLER, encode
from fedray.training.task import load_task, task_names

FIFTEEN_LINES = """
from torch.nn.functional import mse_loss

class LengthOfText:
    head = "classification"
    def labels(self, rows):
        return 1
    def features(self, row, tokenizer, max_length):
        ids = tokenizer(row["text"], truncation=True, max_length=max_length)["input_ids"]
        return {"input_ids": ids, "target": len(row["text"]) / 100}
    def loss(self, forward, batch):
        return mse_loss(forward(batch)[:, 0], batch["target"], reduction="none")
    def outputs(self, forward, batch):
        return [{"loss": value} for value in self.loss(forward, batch).tolist()]
    def metrics(self, outputs, rows):
        return {"loss": sum(o["loss"] for o in outputs) / len(outputs), "accuracy": 0.0}
"""


def test_four_tasks_ship_and_load_by_name():
    heads = {
        "causal_lm": "causal_lm",
        "image_classification": "classification",
        "supervised_finetuning": "causal_lm",
        "text_classification": "classification",
    }
    assert task_names() == tuple(heads)
    for name, head in heads.items():
        assert load_task(name).head == head


def test_options_reach_the_task():
    assert load_task("causal_lm", {"text_column": "body"}).text_column == "body"


def test_a_task_of_fifteen_lines_is_loaded_by_path_and_trains(tmp_path, minilm_tokenizer, fixed):
    assert len(FIFTEEN_LINES.strip().splitlines()) <= 16
    (tmp_path / "length.py").write_text(FIFTEEN_LINES)
    task = load_task(tmp_path / "length.py")
    rows = [{"text": "short"}, {"text": "a longer text " * 10}]
    batch = encode(task, rows, minilm_tokenizer, 16).batch(np.array([0, 1, FILLER]), 16)
    logits = torch.zeros(3, task.labels(rows), requires_grad=True)
    losses = task.loss(fixed(logits), batch)
    np.testing.assert_allclose(losses.tolist(), [0.05**2, 1.4**2, 0], rtol=1e-6)
    (losses * batch["weight"]).sum().backward()
    assert logits.grad[2] == 0
    # A runtime that sends the task elsewhere finds its module.
    assert type(task).__module__ in sys.modules


def test_an_unknown_task_is_answered_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="no task 'clasification': give one of causal_lm, image_classification"
    ):
        load_task("clasification")


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="no option 'text'; it has text_column, append_eos"):
        load_task("causal_lm", {"text": "body"})


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "holds no class"),
        (
            "class Half:\n    head = 'causal_lm'",
            "holds Half without labels, features, loss, outputs, metrics",
        ),
        (
            FIFTEEN_LINES + FIFTEEN_LINES.replace("LengthOfText", "Other"),
            "holds 2 of them: LengthOfText, Other",
        ),
        ("import no_such_module", "does not run: ModuleNotFoundError"),
        ("class", "does not run: SyntaxError"),
    ],
)
def test_a_file_that_holds_no_task_says_what_it_holds(tmp_path, source, sentence):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError, match=sentence):
        load_task(tmp_path / "mine.py")
