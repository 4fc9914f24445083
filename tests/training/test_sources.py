import json

import datasets
import pytest

from fedray.errors import DataError
from fedray.training.sources import Source, load_rows

# datasets leaves the csv file that it reads for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROWS = [{"text": "one, two", "label": 1}, {"text": "three", "label": 2}]


def _csv(path):
    path.write_text('text,label\n"one, two",1\nthree,2\n')


def _json(path):
    path.write_text(json.dumps(ROWS))


def _jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _parquet(path):
    datasets.Dataset.from_list(ROWS).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", _csv), ("a.json", _json), ("a.jsonl", _jsonl), ("a.parquet", _parquet)],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, write):
    write(tmp_path / name)
    assert load_rows(Source(name=tmp_path / name), needs=("text", "label")).to_list() == ROWS


def test_a_text_file_gives_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert list(load_rows(Source(name=str(tmp_path / "a.txt")))["text"]) == ["one", "two"]


def test_a_saved_folder_is_read_back(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_rows(Source(name=tmp_path / "saved")).to_list() == ROWS


def test_a_folder_of_files_is_read(tmp_path):
    (tmp_path / "folder").mkdir()
    _jsonl(tmp_path / "folder" / "train.jsonl")
    assert load_rows(Source(name=tmp_path / "folder")).to_list() == ROWS


def test_a_slice_of_a_split_is_a_slice(tmp_path):
    _csv(tmp_path / "a.csv")
    assert load_rows(Source(name=tmp_path / "a.csv", split="train[1:]")).to_list() == ROWS[1:]


def test_a_real_parquet_file_gives_the_rows_that_its_readme_counts(shared):
    rows = load_rows(Source(name=shared / "data" / "text" / "banking77.parquet"), needs=("text", "label"))
    assert len(rows) == 13083
    assert rows[0] == {"text": "I am still waiting on my card?", "label": "card_arrival", "split": "train"}


def test_fewer_rows_are_drawn_by_the_seed_and_stay_in_order(tmp_path):
    datasets.Dataset.from_dict({"n": list(range(100))}).to_parquet(tmp_path / "n.parquet")
    source = Source(name=tmp_path / "n.parquet", max_rows=10)
    drawn = [list(load_rows(source, seed=seed)["n"]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 10


def test_docstrings_are_the_embedded_corpus_with_the_modules_asked_for():
    rows = load_rows(Source(modules=["tarfile", "xml"], max_rows_per_module=5))
    assert list(rows["label"]) == ["tarfile"] * 5 + ["xml"] * 5


def test_a_missing_column_is_answered_with_the_columns_found(tmp_path):
    _csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"no column 'sentence'; it has text, label"):
        load_rows(Source(name=tmp_path / "a.csv"), needs=("sentence", "label"))


@pytest.mark.parametrize("name", ["nowhere.csv", "./nowhere", "/no/such/folder"])
def test_a_path_with_nothing_there_never_reaches_for_the_network(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="reads like a path, and nothing is there"):
        load_rows(Source(name=name))


@pytest.mark.parametrize(
    ("name", "text", "split", "sentence"),
    [
        ("a.json", '{"text": ', None, "could not be read as json"),
        ("a.csv", "", None, "could not be read as csv"),
        ("a.csv", "text,label\n", None, "could not be read as csv"),
        ("a.xls", "x", None, r"ends in '.xls'; readable are .csv, .json"),
        ("a.txt", "one\n", "test", 'Unknown split "test"'),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, text, split, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        load_rows(Source(name=tmp_path / name, split=split))
