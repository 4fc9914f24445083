"""How fast this machine multiplies and copies: what a profile's rates mean here.

A rate is the median of a few timings after one that warms up. Rates are sustained ones of large
operations; a step of many small operations reaches less.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Widths of square matrices, each eight times the work of the one before; the widest that is quick is timed.
_CPU_WIDTHS, _GPU_WIDTHS = (256, 512, 1024), (2048, 4096, 8192)
# A width is quick if one product takes no longer; processors without bf16 units are some 50 times slower.
_QUICK_SECONDS = 0.3
# Far above a processor's caches, so that memory and not a cache is timed.
_COPIED_BYTES = 256 * 2**20
_REPEATS = 7
# One timing that takes longer than this share of it is repeated less often, three times at least.
_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """One device that torch sees, measured.

    Attributes:
        memory_bytes: of its own; None for the CPU, whose memory is the machine's, and where torch cannot say.
        threads: that were used; 0 for an accelerator.
        flops_per_s_fp32: two operations per multiply-add; None if the device refused.
        memory_bytes_per_s: read plus written by a copy.
    """

    device: str
    name: str
    memory_bytes: int | None
    threads: int
    flops_per_s_fp32: float | None
    flops_per_s_bf16: float | None
    memory_bytes_per_s: float | None


def measure_devices(memory_bytes: int) -> tuple[DeviceRates, ...]:
    """The CPU, and every accelerator of the kind that torch would use.

    Args:
        memory_bytes: of the machine; a small one copies less.
    """
    cpu = _measure(torch.device("cpu"), "CPU", None, copied=min(_COPIED_BYTES, memory_bytes // 32))
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return (cpu,)
    found = [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]
    return cpu, *(_measure(device, *_identity(device), copied=_COPIED_BYTES) for device in found)


def _identity(device: torch.device) -> tuple[str, int | None]:
    if device.type != "cuda":
        return device.type, None
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory


def _measure(device: torch.device, name: str, memory_bytes: int | None, copied: int) -> DeviceRates:
    return DeviceRates(
        device=str(device),
        name=name,
        memory_bytes=memory_bytes,
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        flops_per_s_fp32=_flops_per_s(device, torch.float32),
        flops_per_s_bf16=_flops_per_s(device, torch.bfloat16),
        memory_bytes_per_s=_copied_per_s(device, copied),
    )


def _flops_per_s(device: torch.device, dtype: torch.dtype) -> float | None:
    widths = _CPU_WIDTHS if device.type == "cpu" else _GPU_WIDTHS
    rate = None
    try:
        for width in widths:
            seconds = _product_seconds(width, device, dtype)
            rate = 2 * width**3 / seconds
            if 8 * seconds > _QUICK_SECONDS:
                break
    except RuntimeError:
        # Out of memory, or a type that the device does not multiply.
        return rate
    return rate


def _product_seconds(width: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(width, width, device=device, dtype=dtype)
    out = torch.empty_like(left)
    return median_seconds(lambda: torch.matmul(left, left, out=out), device)


def _copied_per_s(device: torch.device, copied: int) -> float | None:
    try:
        source = torch.ones(copied // 4, device=device)
        target = torch.empty_like(source)
        seconds = median_seconds(lambda: target.copy_(source), device)
    except RuntimeError:
        return None
    return 2 * source.nbytes / seconds


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the median of up to seven, fewer where they take long."""
    taken: list[float] = []
    _timed(work, device)
    while len(taken) < 3 or (len(taken) < _REPEATS and sum(taken) < _SECONDS):
        taken.append(_timed(work, device))
    return statistics.median(taken)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        # An accelerator returns before it is done.
        torch.accelerator.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)
