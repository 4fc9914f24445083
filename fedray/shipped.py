"""Where the files that travel beside the package lie: ``policies`` and ``cluster_configs``."""

from pathlib import Path
from typing import Literal

from fedray.errors import ConfigError

Kind = Literal["policies", "cluster_configs"]


def shipped(kind: Kind, package: Path = Path(__file__).parent) -> Path:
    """The folder ``kind``: at the root of a checkout, or in ``fedray_shipped`` beside an installed package.

    Args:
        kind: which folder.
        package: the folder of ``fedray`` itself.

    Raises:
        ConfigError: the installation carries neither.
    """
    installed = package.parent / "fedray_shipped" / kind
    checkout = package.parent / kind
    # site-packages may hold a stranger's folder named "policies", so a checkout shows its pyproject.toml.
    is_checkout = (package.parent / "pyproject.toml").is_file()
    for folder, holds in ((checkout, is_checkout), (installed, True)):
        if holds and folder.is_dir():
            return folder
    raise ConfigError(
        f"fedray's {kind} are neither in {checkout} nor in {installed}; install fedray again, or give a path."
    )
