import collections
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from fedray.errors import DataError
from fedray.training.glyphs import CHARACTERS, FONTS, glyphs


@pytest.fixture(scope="module")
def drawn():
    return glyphs()


def pixels(row):
    return np.asarray(row["image"]).astype(int)


def box(ink):
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


def test_every_font_draws_every_letter_and_digit_once(drawn):
    assert len(FONTS) == len(set(FONTS)) == 20
    assert len(CHARACTERS) == 26 + 26 + 10
    pairs = collections.Counter(zip(drawn["font"], drawn["label"], strict=True))
    assert len(drawn) == len(pairs) == 20 * 62
    assert set(pairs.values()) == {1}


def test_every_image_is_bright_ink_in_the_middle_and_none_is_cut_or_comes_twice(drawn):
    seen = set()
    for row in drawn:
        image = pixels(row)
        assert image.shape == (28, 28)
        assert image.max() > 200
        top, bottom, left, right = box(image > 0)
        assert min(top, left) >= 1
        assert max(bottom, right) <= 26
        assert abs(top - (27 - bottom)) <= 1
        assert abs(left - (27 - right)) <= 1
        seen.add(image.tobytes())
    assert len(seen) == len(drawn)


@pytest.mark.parametrize("font", ["DejaVuSerif-Bold", "cmti10", "STIXGeneral"])
def test_the_letters_are_those_that_matplotlib_itself_draws(drawn, font):
    own = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"))
    own.set_size(20, 72)
    for row in drawn.filter(lambda row: row["font"] == font):
        own.set_text(row["label"])
        own.draw_glyphs_to_bitmap()
        theirs, ours = np.asarray(own.get_image()) > 100, pixels(row) > 100
        sizes = [(bottom - top, right - left) for top, bottom, left, right in (box(theirs), box(ours))]
        assert np.abs(np.subtract(*sizes)).max() <= 2, row["label"]
        assert ours.sum() == pytest.approx(theirs.sum(), rel=0.35), row["label"]


def test_two_drawings_are_equal_in_order_too(drawn):
    again = glyphs()
    assert again["label"][:] == drawn["label"][:]
    assert all((pixels(again[at]) == pixels(drawn[at])).all() for at in range(0, len(drawn), 37))


def test_a_matplotlib_without_fonts_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans\.ttf is not read .*; install matplotlib from its wheel"):
        glyphs()
