"""The embedded images: letters and digits as the fonts that come with matplotlib draw them.

Real type that every machine with fedray holds, from 20 fonts that naturally differ, so a first run on images
needs no download; as small as MNIST's, and with a font in the place of a writer.
"""

import io
import string
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from fedray.errors import DataError

# Those of matplotlib's that hold letters and digits: DejaVu, STIX and Computer Modern.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{style}10" for style in ("b", "r", "ss", "ti")),
)
CHARACTERS = string.digits + string.ascii_letters
SIZE = 28  # pixels of a side
_POINTS, _WIDE = 20, 64  # of the type; of the sheet it is first drawn on, with room for any letter


def glyphs() -> datasets.Dataset:
    """Every character of every font, font by font.

    Returns:
        Columns ``image`` (28 x 28, ink bright on black, the letter in its middle), ``label`` (the character)
        and ``font`` (its name).

    Raises:
        DataError: if this matplotlib came without its fonts.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, labels, fonts = [], [], []
    for name in FONTS:
        font = _font(folder / f"{name}.ttf")
        for character in CHARACTERS:
            images.append(PIL.Image.fromarray(_drawn(character, font)))
            labels.append(character)
            fonts.append(name)
    columns = {"image": datasets.Image(), "label": datasets.Value("string"), "font": datasets.Value("string")}
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels, "font": fonts}, features=datasets.Features(columns)
    )


def _font(file: Path) -> PIL.ImageFont.FreeTypeFont:
    try:
        # By its name Pillow would look for it elsewhere too.
        return PIL.ImageFont.truetype(io.BytesIO(file.read_bytes()), _POINTS)
    except OSError as error:
        raise DataError(
            f"The images 'glyphs' are drawn with matplotlib's own fonts, and {file} is not read ({error}); "
            f"install matplotlib from its wheel, or give images of your own."
        ) from error


def _drawn(character: str, font: PIL.ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    sheet = PIL.Image.new("L", (_WIDE, _WIDE))
    PIL.ImageDraw.Draw(sheet).text((_WIDE // 2, _WIDE // 2), character, fill=255, font=font, anchor="mm")
    left, top, right, bottom = sheet.getbbox() or (0, 0, _WIDE, _WIDE)
    first_column, first_row = (left + right - SIZE) // 2, (top + bottom - SIZE) // 2
    return np.asarray(sheet)[first_row : first_row + SIZE, first_column : first_column + SIZE]
