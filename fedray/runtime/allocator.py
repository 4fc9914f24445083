"""What is freed stays with the process: a pack's tensors come and go by the thousand."""

import ctypes
import platform

# The names are malloc.h's; see mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_LARGEST_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of what is freed, in buffers of up to 32 MiB, and say whether it does.

    By default it gives the end of its heap back to the system whenever 128 KiB to a few MiB of it are free.
    A step's activations then are new pages at every step, each cleared by the kernel when first written.
    Only what a process holds changes, neither counted bytes nor results. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wanted = {_M_TRIM_THRESHOLD: _KEPT_BYTES, _M_MMAP_THRESHOLD: _LARGEST_BYTES}
    return all(libc.mallopt(name, amount) == 1 for name, amount in wanted.items())
