import math

import pytest
import torch

from fedray.errors import DataError
from fedray.training.data import encode
from fedray.training.sources import Source, load_rows
from fedray.training.tasks.text_classification import TextClassification


def test_the_classification_loss_is_torchs_cross_entropy_row_by_row(fixed):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 1, 1])
    losses = TextClassification().loss(fixed(logits), {"label": labels})
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), torch.nn.functional.cross_entropy(logits, labels))


def test_classes_are_the_sorted_labels_of_all_rows(minilm_tokenizer):
    task = TextClassification()
    rows = [{"text": "Where is my card?", "label": label} for label in ("lost", "card", "lost", "age")]
    assert task.labels(rows) == 3
    assert list(encode(task, rows, minilm_tokenizer, 16).numbers["label"]) == [2, 1, 2, 0]
    # [CLS] where is my card ? [SEP] in the vocabulary of BERT.
    assert task.features(rows[0], minilm_tokenizer, 16)["input_ids"] == [
        101,
        2073,
        2003,
        2026,
        4003,
        1029,
        102,
    ]


def test_whole_numbers_with_gaps_are_classes_too(minilm_tokenizer):
    task = TextClassification(text_column="t", label_column="stars")
    rows = [{"t": "good", "stars": 5}, {"t": "bad", "stars": 1}]
    assert task.labels(rows) == 2
    assert [task.features(row, minilm_tokenizer, 8)["label"] for row in rows] == [1, 0]


def test_classification_metrics_worked_by_hand(fixed):
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    task = TextClassification()
    outputs = task.outputs(fixed(logits), {"label": torch.tensor([0, 1, 1])})
    assert [output["predicted"] for output in outputs] == [0, 1, 0]
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 3
    assert task.metrics(outputs, [{}] * 3) == {
        "accuracy": pytest.approx(2 / 3),
        "loss": pytest.approx(wanted),
        "largest_class": pytest.approx(2 / 3),
    }


def test_banking77_has_77_classes_of_real_questions(shared, minilm_tokenizer):
    rows = load_rows(Source(name=shared / "data" / "text" / "banking77.parquet"))
    task = TextClassification()
    assert task.labels(list(rows)) == 77
    few = encode(task, rows.select(range(50)), minilm_tokenizer, 32)
    assert set(few.numbers["label"]) == {task.classes.index("card_arrival")}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["a", 1], "all be strings or all whole numbers, found int, str|all whole numbers, found int, str"),
        ([0.5, 1.5], "all whole numbers, found float"),
        (["a", "a"], "needs two classes or more, and 'label' has 1"),
        ([None, "a"], "has nothing in the column 'label'"),
    ],
)
def test_labels_that_make_no_classes_are_refused(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        TextClassification().labels([{"text": "", "label": label} for label in labels])


def test_a_label_never_shown_is_refused(minilm_tokenizer):
    task = TextClassification(classes=["a", "b"])
    with pytest.raises(DataError, match=r"the label 'c', which is none of the 2 classes \('a', 'b'"):
        task.features({"text": "x", "label": "c"}, minilm_tokenizer, 8)


def test_a_missing_column_lists_those_found(minilm_tokenizer):
    with pytest.raises(DataError, match="reads the column 'text', and the rows have sentence, label"):
        TextClassification(classes=["a", "b"]).features({"sentence": "x", "label": "a"}, minilm_tokenizer, 8)
