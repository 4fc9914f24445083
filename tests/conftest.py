"""What every test shares: an offline Hugging Face, few threads, and the way to the shared trials."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

# Set before any library reads them: a test never reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import tiny_run

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A home folder for runs in this process and, as HOME, in others: footprints are traced once for all."""
    folder = tmp_path_factory.mktemp("home")
    cache = folder / ".cache" / "fedray" / "footprints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedray.engine.CACHE_DIR", cache)
        patch.setattr("fedray.planning.CACHE_DIR", cache)
        patch.setattr("fedray.simulation.CACHE_DIR", cache)
        yield folder


@pytest.fixture(scope="session")
def tiny(home: pathlib.Path) -> dict[str, Any]:
    """A configuration of a run that takes seconds; see tests/tiny_run.py."""
    return tiny_run.configuration(home)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of trial data that lies beside some checkouts; a test that needs it skips without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the trial data beside the checkout (../shared), which is not there")
    return folder
