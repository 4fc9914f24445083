import pytest

from fedray.whole_file import kept, replaced


def test_a_file_is_the_new_one_or_the_one_of_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError), replaced(path) as part:
        part.write_text("half \ud800", encoding="utf-8")
    assert path.read_text() == "before"
    with replaced(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "after"


def test_what_is_kept_makes_its_folder_and_nothing_of_a_folder_that_cannot_be(tmp_path):
    kept(tmp_path / "deep" / "down" / "file", "found")
    assert (tmp_path / "deep" / "down" / "file").read_text() == "found"
    kept(tmp_path / "deep" / "down" / "file" / "below", "lost")
    assert (tmp_path / "deep" / "down" / "file").read_text() == "found"
