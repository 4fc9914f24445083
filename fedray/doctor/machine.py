"""What the operating system says of this machine: cores, memory, disk, a C++ compiler."""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine, as this process may use it.

    Attributes:
        cores: that this process may run on.
        memory_bytes: RAM, or the container's limit if that is less.
        available_bytes: of it, not in use now; None where the system does not say.
        disk_free_bytes: where runs would be written, in ``folder``.
        shared_free_bytes: where Ray keeps its objects; None where there is no such place.
        compiler: path of a C++ compiler; DeepSpeed builds its kernels with one.
    """

    system: str
    cores: int
    memory_bytes: int
    available_bytes: int | None
    folder: str
    disk_free_bytes: int
    shared_free_bytes: int | None
    compiler: str | None


def look_around(folder: Path) -> Machine:
    """This machine now; ``folder`` is where runs would be written."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, available = _memory_limit(), _available()
    memory = total if limit is None else min(total, limit)
    shared = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cores=_cores(),
        memory_bytes=memory,
        available_bytes=None if available is None else min(available, memory),
        folder=str(folder),
        disk_free_bytes=shutil.disk_usage(folder).free,
        shared_free_bytes=shared,
        compiler=next((path for name in _COMPILERS if (path := shutil.which(name))), None),
    )


def _cores() -> int:
    # A container or a batch system may give a process fewer cores than there are; not every system says.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_limit() -> int | None:
    try:
        text = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _available() -> int | None:
    return kibibytes(Path("/proc/meminfo"), "MemAvailable")


def kibibytes(path: Path, key: str) -> int | None:
    """Bytes that a line ``key:  123 kB`` of a file under /proc says; None without file or line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(f"{key}:"))
    return next((int(parts[1]) * 1024 for parts in found), None)
