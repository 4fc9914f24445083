"""Files that are whole or not there: written beside and renamed."""

import os
from collections.abc import Iterator
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


def kept(path: Path, text: str) -> None:
    """Write what may be found again instead of found out again; a disk that is full keeps nothing."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as part:
            part.write_text(text, encoding="utf-8")
