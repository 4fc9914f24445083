"""Files that are whole or not there: written beside and renamed; and names for them by what they came of."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` unless something goes wrong."""
    # Several processes may write the same file at once: one cache serves all of a user's runs.
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def named_by(files: Iterable[Path], *facts: bytes) -> str:
    """A name, of 32 hex digits, for what was found out from the content of these files and these facts."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for fact in facts:
        digest.update(hashlib.sha256(fact).digest())
    return digest.hexdigest()[:32]


def kept(path: Path, text: str) -> None:
    """Write what may be found again instead of found out again; a disk that is full keeps nothing."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as part:
            part.write_text(text, encoding="utf-8")
