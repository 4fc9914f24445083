"""What every test shares: an offline Hugging Face, few threads, and the way to the shared trials."""

import os
import pathlib

# Set before any library reads them: a test never reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of trial data that lies beside some checkouts; a test that needs it skips without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the trial data beside the checkout (../shared), which is not there")
    return folder
