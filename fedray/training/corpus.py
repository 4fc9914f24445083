"""The embedded corpus: the docstrings of the running Python's own standard library, by module.

Real texts that every machine already holds, in groups that naturally differ, so a first run needs
no download. Sources are parsed and never imported.
"""

import ast
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets

from fedray.errors import DataError

# The 16 modules with the most docstrings among those in CPython 3.11 to 3.14. Left out although
# larger: tkinter and idlelib (packaged apart by most Linux distributions), distutils and lib2to3
# (gone in 3.12 and 3.13).
MODULES = (
    "_pydecimal",
    "_pyio",
    "asyncio",
    "email",
    "encodings",
    "http",
    "importlib",
    "inspect",
    "logging",
    "mailbox",
    "multiprocessing",
    "tarfile",
    "turtle",
    "unittest",
    "urllib",
    "xml",
)
# Shorter ones ("Close.", "See above.") name no subject.
MIN_CHARS = 20


def docstrings(
    modules: Sequence[str] = MODULES, max_per_module: int = 150, min_chars: int = MIN_CHARS
) -> datasets.Dataset:
    """Docstrings of modules, classes and functions, by module, by file, outer before inner.

    A text that several places share is kept once, where it comes first.

    Args:
        modules: top-level names of the standard library.
        max_per_module: the first so many texts of each.
        min_chars: shorter texts are dropped.

    Returns:
        Columns ``text`` (str) and ``label`` (the module's name).

    Raises:
        DataError: for a module that is not among this Python's sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    texts: list[str] = []
    labels: list[str] = []
    for module in modules:
        fresh = [
            text for text in _docstrings_of(library, module) if len(text) >= min_chars and text not in seen
        ]
        kept = list(dict.fromkeys(fresh))[:max_per_module]
        seen.update(fresh)
        texts += kept
        labels += [module] * len(kept)
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def _docstrings_of(library: Path, module: str) -> Iterator[str]:
    for path in _files(library, module):
        for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def _files(library: Path, module: str) -> list[Path]:
    single, package = library / f"{module}.py", library / module
    if single.is_file():
        return [single]
    if not (package / "__init__.py").is_file():
        raise DataError(
            f"The docstring corpus was asked for the module {module!r}, which has no source under {library}; "
            f"choose top-level standard library modules, such as {', '.join(MODULES[2:5])}."
        )
    # Some distributions ship a package's own tests and some do not.
    paths = [
        path for path in package.rglob("*.py") if not {"test", "tests"} & set(path.relative_to(library).parts)
    ]
    return sorted(paths, key=lambda path: path.relative_to(library).parts)
