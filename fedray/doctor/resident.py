"""The resident-bytes factor: how far a process grows for each byte that the counter sees alive."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Imports alone take some 10 s on a slow disk; a machine that needs longer than this is not measured.
_PATIENCE_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One client trained alone in a fresh process.

    Attributes:
        resting_bytes: resident before, with every library loaded and used once.
        grown_bytes: resident at the most, minus that.
        counted_bytes: peak of live tensor bytes, as footprints and audits count them.
        weights_bytes: of these, frozen weights.
    """

    resting_bytes: int
    grown_bytes: int
    counted_bytes: int
    weights_bytes: int

    @property
    def factor(self) -> float:
        """Resident bytes for each counted byte of this client."""
        return self.grown_bytes / self.counted_bytes

    @property
    def working_factor(self) -> float:
        """The same of what is not weights: a client with a larger share of activations is nearer to it."""
        return (self.grown_bytes - self.weights_bytes) / (self.counted_bytes - self.weights_bytes)


def measure_resident(python: str = sys.executable) -> Resident | str:
    """Measured in a process of its own, or a sentence that says why it was not.

    Args:
        python: the interpreter that runs it.
    """
    command = [python, "-m", "fedray.doctor.alone"]
    # From the folder that holds this fedray, installed or not.
    origin = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            command, cwd=origin, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True
        )
        return Resident(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return f"A client alone did not finish within {_PATIENCE_SECONDS} s; free the machine and try again."
    except subprocess.CalledProcessError as error:
        # A negative exit code is a signal: 9 is how a system ends a process that takes too much memory.
        last = (error.stderr.strip().splitlines() or [f"it ended with exit code {error.returncode}"])[-1]
        return f"A client alone could not be trained: {last}"
