"""A user's file as a module of its own."""

import sys

import pytest

from fedray.python_file import run_file


def test_two_files_of_one_name_stay_apart_and_are_found_by_their_classes(tmp_path):
    (tmp_path / "other").mkdir()
    found = []
    for folder, value in ((tmp_path, 1), (tmp_path / "other", 2)):
        (folder / "mine.py").write_text(
            "from dataclasses import dataclass\n@dataclass\nclass Own:\n    value: 'int' = "
            + str(value)
            + "\n"
        )
        found.append(run_file(folder / "mine.py", "policy"))
    assert [module.Own().value for module in found] == [1, 2]
    assert all(sys.modules[module.Own.__module__] is module for module in found)


def test_a_file_that_fails_leaves_no_module_behind(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        run_file(tmp_path / "broken.py", "task")
    assert set(sys.modules) == before
