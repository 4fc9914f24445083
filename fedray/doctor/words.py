"""An examination as people read it."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedray.doctor.examination import Examination
from fedray.doctor.packages import Package
from fedray.doctor.resident import Resident
from fedray.units import show_bytes

if TYPE_CHECKING:
    from fedray.doctor.rates import DeviceRates


def show(examination: Examination, console: Console) -> None:
    """Print what is there, how fast it is, and what is missing."""
    _show_packages(examination, console)
    _show_machine(examination, console)
    _show_rates(examination.devices, console)
    _show_resident(examination.resident, console)
    console.print()
    if examination.missing:
        console.print(
            "Missing, and needed: " + "; ".join(examination.missing) + ".", style="bold", markup=False
        )
        console.print("To fix: pip install --upgrade fedray", markup=False)
    else:
        console.print("Everything that fedray needs is here.", style="bold", markup=False)


def _titled(title: str, *columns: str) -> Table:
    # Without boxes: it is as clear in a file as on a terminal.
    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
    for column in columns:
        made.add_column(column, header_style="dim", overflow="fold")
    return made


def _show_packages(examination: Examination, console: Console) -> None:
    packages = _titled(f"Python {examination.python}", "package", "found", "needed by", "state")
    for package in (*examination.core, *examination.extras):
        packages.add_row(package.name, package.found or "-", package.extra or "core", _state(package))
    console.print(packages, markup=False)
    names = ", ".join(f"{name} {version}" for name, version in examination.trackers.items())
    console.print(
        f"Trackers for report_to: {names or 'none; install wandb, tensorboard, ... to use one'}.",
        markup=False,
    )


def _state(package: Package) -> str:
    if package.fine:
        return "ok"
    wrong = f"older than {package.minimum}" if package.found else "missing"
    return wrong if not package.extra else f"{wrong}: pip install 'fedray[{package.extra}]'; {package.use}"


def _show_machine(examination: Examination, console: Console) -> None:
    m = examination.machine
    found = _titled("\nMachine", "what", "found")
    found.add_row("system", m.system)
    found.add_row("cores for this process", str(m.cores))
    available = "" if m.available_bytes is None else f", {show_bytes(m.available_bytes)} of it available"
    found.add_row("memory", show_bytes(m.memory_bytes) + available)
    found.add_row("disk", f"{show_bytes(m.disk_free_bytes)} free in {m.folder}")
    if m.shared_free_bytes is not None:
        found.add_row("shared memory (Ray's objects)", f"{show_bytes(m.shared_free_bytes)} free")
    found.add_row("C++ compiler (DeepSpeed)", m.compiler or "none; DeepSpeed needs one")
    console.print(found, markup=False)


def _show_rates(devices: "tuple[DeviceRates, ...]", console: Console) -> None:
    if not devices:
        return
    head = ("device", "name", "memory", "fp32 FLOP/s", "bf16 FLOP/s", "memory bytes/s")
    found = _titled("\nRates, measured: the median of several large products and copies", *head)
    for d in devices:
        name = f"{d.name}, {d.threads} threads" if d.threads else d.name
        memory = "the machine's" if d.memory_bytes is None else show_bytes(d.memory_bytes)
        rates = (d.flops_per_s_fp32, d.flops_per_s_bf16, d.memory_bytes_per_s)
        found.add_row(d.device, name, memory, *map(_rate, rates))
    console.print(found, markup=False)


def _rate(per_second: float | None) -> str:
    if per_second is None:
        return "-"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if per_second >= size:
            return f"{per_second / size:.3g} {prefix}"
    return f"{per_second:.3g}"


def _show_resident(resident: Resident | str, console: Console) -> None:
    console.print("\nResident bytes", style="bold", markup=False)
    if isinstance(resident, str):
        console.print(f"Not measured. {resident}", markup=False)
        return
    console.print(
        f"One client of MiniLM's shape, alone in a process: {show_bytes(resident.counted_bytes)} of tensors "
        f"alive at the peak ({show_bytes(resident.weights_bytes)} of it weights), and the process grew by "
        f"{show_bytes(resident.grown_bytes)}: factor {resident.factor:.2f} "
        f"({resident.working_factor:.2f} on what is not weights).\n"
        "Footprints, audits and memory_bytes are live tensor bytes. A real device needs its predicted peak "
        f"times this factor, and {show_bytes(resident.resting_bytes)} for Python and its libraries at rest.",
        markup=False,
        highlight=False,
    )
