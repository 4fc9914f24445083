"""How long a million declared clients take to load and to draw; prints seconds, asserts nothing.

Run ``python benchmarks/fleet_load.py [NUM_CLIENTS]`` from the root of a checkout.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedray.fleet import load_fleet


def main(num_clients: int) -> None:
    """Draws a fleet, writes it as Parquet and CSV, and times reading, checking and looking up each."""
    start = time.perf_counter()
    fleet = load_fleet("phones", num_clients, seed=1)
    print(f"draw {num_clients} clients of a mix: {time.perf_counter() - start:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".parquet", ".csv"):
            path = Path(folder) / f"fleet{suffix}"
            fleet.save(path)
            start = time.perf_counter()
            loaded = load_fleet(path)
            seconds = time.perf_counter() - start
            print(f"load {suffix[1:]} ({path.stat().st_size / 1e6:.0f} MB): {seconds:.2f} s")
    cohort = np.arange(0, num_clients, max(1, num_clients // 1000))
    start = time.perf_counter()
    loaded.device(cohort)
    print(f"device() of {len(cohort)} clients: {(time.perf_counter() - start) * 1e3:.2f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
