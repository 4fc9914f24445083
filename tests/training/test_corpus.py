import ast
import collections
import sys
import sysconfig
from pathlib import Path

import pytest

from fedray.errors import DataError
from fedray.training.corpus import MODULES, docstrings


@pytest.fixture(scope="module")
def corpus():
    return docstrings()


def test_the_sixteen_modules_each_give_80_to_150_texts(corpus):
    sizes = collections.Counter(corpus["label"])
    assert set(sizes) == set(MODULES)
    assert len(MODULES) == 16
    assert min(sizes.values()) >= 80
    assert max(sizes.values()) == 150


def test_a_known_docstring_is_there_under_its_module(corpus):
    label = dict(zip(corpus["text"], corpus["label"], strict=True))
    path = Path(sysconfig.get_path("stdlib")) / "tarfile.py"
    source = ast.parse(path.read_text())
    wanted = next(n for n in ast.walk(source) if isinstance(n, ast.ClassDef) and n.name == "TarInfo")
    assert label[ast.get_docstring(wanted)] == "tarfile"


def test_no_text_comes_twice_and_none_is_very_short(corpus):
    texts = list(corpus["text"])
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= 20


def test_two_readings_are_equal_in_order_too(corpus):
    again = docstrings(MODULES[:4]).to_list()
    assert again == corpus.to_list()[: len(again)]


def test_no_module_is_imported_by_reading_it():
    before = "turtle" in sys.modules
    assert len(docstrings(["turtle"])) == 150
    assert ("turtle" in sys.modules) == before


def test_the_largest_number_of_texts_is_kept_from_the_first():
    everything, few = docstrings(["logging"], max_per_module=10**6), docstrings(["logging"], max_per_module=7)
    assert list(few["text"]) == list(everything["text"])[:7]


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(DataError, match=r"the module 'no_such', which has no source under .*; choose"):
        docstrings(["logging", "no_such"])
