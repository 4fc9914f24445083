"""A user's Python file as a module: a policy, a task or an aggregation rule that is found by its path."""

import importlib.util
import sys
import traceback
import zlib
from pathlib import Path
from types import ModuleType


def run_file(path: Path, kind: str) -> ModuleType:
    """The file's module, run anew; what its own code raises comes through.

    It has a name of its own, so that two files called mine.py do not replace each other, and lies in
    ``sys.modules``: dataclasses look their own module up while they are made, and a runtime that sends an
    object elsewhere looks its module up to send its code along.

    Args:
        path: an existing Python file.
        kind: what it holds, as ``"policy"``: part of the module's name.
    """
    name = f"fedray_{kind}_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def place_of(error: Exception, file: str) -> str:
    """``FILE:LINE`` of the last line of that file that an error came through; the file alone if of none."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{frames[-1].lineno}" if frames else file
