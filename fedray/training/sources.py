"""Rows of a data set: what is embedded, a local file or folder, or a name on the Hugging Face hub."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedray.errors import DataError
from fedray.seeds import generator
from fedray.training.corpus import MODULES, docstrings
from fedray.training.glyphs import glyphs

# The names of the embedded texts and images, wherever a data set is asked for.
TEXTS, IMAGES = "docstrings", "glyphs"
_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows come from.

    A path that exists is read from disk: a csv, json, jsonl, parquet or txt file (one row a line), a
    folder that ``Dataset.save_to_disk`` wrote, or a folder of such files or of images (one folder a label).
    Any other name is a data set on the Hugging Face hub.

    Attributes:
        name: ``"docstrings"``, ``"glyphs"``, a path or a hub name.
        subset: the configuration of a hub data set that has several.
        split: a split or a slice of one (``"train[:1000]"``); ``"train"`` unless given.
        modules: of the docstrings; `fedray.training.corpus.MODULES` unless given.
        max_rows_per_module: of the docstrings.
        max_rows: at most so many rows in all, drawn by the seed.
    """

    name: str | Path = TEXTS
    subset: str | None = None
    split: str | None = None
    modules: Sequence[str] | None = None
    max_rows_per_module: int = 150
    max_rows: int | None = None


def load_rows(source: Source, *, needs: Sequence[str] = (), seed: int = 0) -> datasets.Dataset:
    """The rows of a data set, in the source's own order; images are left in their files' bytes.

    Args:
        source: where they are.
        needs: columns that must be there.
        seed: of the run; draws ``max_rows``.

    Raises:
        DataError: if it cannot be found or read, is empty, or lacks a column; the columns found are listed.
    """
    rows = _all_rows(source)
    if not len(rows):
        raise DataError(f"The data {str(source.name)!r} holds no rows; give a file or a split that has some.")
    require_columns(rows, needs, str(source.name))
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):  # whoever lists all rows would hold all pixels
            rows = rows.cast_column(name, datasets.Image(decode=False))
    if source.max_rows is None or source.max_rows >= len(rows):
        return rows
    return rows.select(np.sort(generator(seed, "max_rows").permutation(len(rows))[: source.max_rows]))


def _all_rows(source: Source) -> datasets.Dataset:
    name = source.name
    if str(name) == TEXTS:
        modules = MODULES if source.modules is None else source.modules
        return docstrings(modules, source.max_rows_per_module)
    if str(name) == IMAGES:
        return glyphs()
    if Path(name).exists():
        return _local(Path(name), source.split)
    if _reads_like_a_path(name):
        raise DataError(
            f"The data {str(name)!r} reads like a path, and nothing is there (looked for "
            f"{Path(name).absolute()}); give an existing file, a hub name such as 'imdb', or "
            f"{TEXTS!r} or {IMAGES!r} for what is embedded."
        )
    return _from_hub(str(name), source.subset, source.split)


def require_columns(rows: datasets.Dataset, needs: Sequence[str], source: str) -> None:
    """Check that the columns exist. Raises DataError, which lists what is there."""
    missing = [name for name in needs if name not in rows.column_names]
    if missing:
        raise DataError(
            f"The data {source!r} has no column {' and no column '.join(map(repr, missing))}; it has "
            f"{', '.join(rows.column_names)}: name the right ones in the options of task and partition."
        )


def _reads_like_a_path(source: str | Path) -> bool:
    # A hub name is "name" or "owner/name".
    text = str(source)
    return (
        isinstance(source, Path)
        or text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or (Path(text).suffix.lower() in _BUILDERS)
    )


def _local(path: Path, split: str | None) -> datasets.Dataset:
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        return _load(str(path), str(path), None, split)
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise DataError(
            f"The file {str(path)!r} ends in {path.suffix!r}; readable are {', '.join(sorted(_BUILDERS))}: "
            f"convert it to one of these."
        )
    return _load(str(path), builder, str(path), split)


def _from_hub(name: str, subset: str | None, split: str | None) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, subset, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The data {name!r} is neither a local path nor could it be loaded from the Hugging Face hub "
            f"({_first_line(error)}); check the name, split {split or 'train'!r}, subset {subset!r} and the "
            f"network, or give a local file."
        ) from error


def _load(name: str, builder: str, file: str | None, split: str | None) -> datasets.Dataset:
    try:
        with _without_bars():
            features = _features(file) if builder == "parquet" and file is not None else None
            return datasets.load_dataset(builder, data_files=file, split=split or "train", features=features)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # The builder wraps the reader's own words.
        cause = error.__cause__ or error
        raise DataError(
            f"The data {name!r} could not be read as {builder} with split {split or 'train'!r} "
            f"({_first_line(cause)}); mend the file or the split."
        ) from error


def _features(file: str) -> datasets.Features | None:
    """The columns of a parquet file with bytes of one length as plain bytes; None where there are none."""
    schema = pq.read_schema(file)
    if not any(pa.types.is_fixed_size_binary(field.type) for field in schema):
        return None
    plain = [
        field.with_type(pa.binary()) if pa.types.is_fixed_size_binary(field.type) else field
        for field in schema
    ]
    return datasets.Features.from_arrow_schema(pa.schema(plain, schema.metadata))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    # A local file is read before a bar is worth drawing.
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
