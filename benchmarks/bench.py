"""fedray beside its peers on four works, in one sitting: ``make bench``.

Prints per-client milliseconds of a steady round (the median after the first), their ratios, and how far the
averaged adapters lie apart; an engine that is fast and wrong is not fast. Machines differ, and a busy one
measures its business: compare ratios. Peers run in their own virtual environments, or are left out without::

    python -m venv flower; flower/bin/pip install 'flwr[simulation]' torch transformers peft
    python -m venv pfl; pfl/bin/pip install 'pfl[pytorch]' torch transformers peft
    python benchmarks/bench.py --flower-python flower/bin/python --pfl-python pfl/bin/python

``--device cuda --works MLH`` times fedray's local runtime and the plain loop on an accelerator.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import unlike
import works

HERE = Path(__file__).parent
# fedray's per-client time as a share of the peer's, at most.
TARGETS: Mapping[str, Mapping[str, float]] = {
    "pfl-research": {"S": 0.30, "M": 0.90, "L": 0.85},
    "Flower": {"S": 0.08, "M": 0.35, "L": 0.70},
}
SPEEDUP_ON_H = 2.0
TOLERANCE = 1e-5
SECONDS = 1800  # of one engine on one work


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One way to run one engine: its command up to WORK and OUT; ``single`` gives it one thread a process."""

    engine: str
    command: Sequence[str | Path]
    options: Sequence[str] = ()
    single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an engine did: seconds of a steady round, the averaged adapters, and how it was run."""

    seconds: float
    adapter: Mapping[str, np.ndarray]
    entry: Entry


def on_accelerator(device: str) -> list[Entry]:
    """The ways that run in one process on a device."""
    return [
        Entry(engine=engine, command=[sys.executable, HERE / script], options=["--device", device])
        for engine, script in (("fedray", "fedray_loop.py"), ("plain loop", "plain_loop.py"))
    ]


def entries(flower: Path | None, pfl: Path | None) -> list[Entry]:
    """Every way that can be run here on CPUs; of several of one engine the fastest counts."""
    ways = [
        Entry(engine="fedray", command=[sys.executable, HERE / "fedray_loop.py"]),
        Entry(
            engine="fedray",
            command=[sys.executable, HERE / "fedray_loop.py"],
            options=["--runtime", "on_ray"],
        ),
        Entry(engine="plain loop", command=[sys.executable, HERE / "plain_loop.py"]),
    ]
    if flower is None:
        print("Flower is skipped: give --flower-python, the python of an environment with flwr[simulation].")
    else:
        ways.append(Entry(engine="Flower", command=[flower, HERE / "peers/flower_peer.py"]))
    if pfl is None:
        print("pfl-research is skipped: give --pfl-python, the python of an environment with pfl.")
    else:
        script = HERE / "peers/pfl_peer.py"
        spread = [pfl, "-m", "torch.distributed.run", "--nproc-per-node", str(os.cpu_count()), script]
        ways.append(Entry(engine="pfl-research", command=[pfl, script]))
        ways.append(Entry(engine="pfl-research", command=spread, single=True))
    return ways


def measure(entry: Entry, name: str, seed: int) -> Measured | None:
    """Run one engine on one work in a process of its own; None, with a sentence, if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *map(str, entry.command),
            name,
            str(out),
            *([str(seed)] if name == "H" else []),
            *entry.options,
        ]
        environment = dict(os.environ) | ({"OMP_NUM_THREADS": "1"} if entry.single else {})
        try:
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{entry.engine} took more than {SECONDS} s on {name} and was given up.")
            return None
        if not out.with_suffix(".json").exists():
            lines = (ran.stderr or ran.stdout).strip().splitlines() or ["nothing"]
            print(f"{entry.engine} failed on {name}, exit code {ran.returncode}; its last words: {lines[-1]}")
            return None
        rounds = json.loads(out.with_suffix(".json").read_text())["rounds"]
        with np.load(out.with_suffix(".npz")) as arrays:
            adapter = dict(arrays)
    return Measured(seconds=statistics.median(rounds[1:]), adapter=adapter, entry=entry)


def distance(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest relative distance of a tensor, Frobenius."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(
        float(np.linalg.norm(ours[n] - theirs[n]) / max(float(np.linalg.norm(theirs[n])), 1e-30))
        for n in theirs
    )


def sitting(name: str, ways: Sequence[Entry], seed: int) -> dict[str, Measured]:
    """Every engine on one work; of several ways the fastest."""
    best: dict[str, Measured] = {}
    for entry in ways:
        found = measure(entry, name, seed)
        if found is not None and (entry.engine not in best or found.seconds < best[entry.engine].seconds):
            best[entry.engine] = found
    return best


def show(name: str, best: Mapping[str, Measured], tokens: int, clients: int) -> bool:
    """Print one work's lines. False if a target is missed, adapters differ, or fedray or the loop failed."""
    if not {"fedray", "plain loop"} <= best.keys():
        return False
    ours, plain = best["fedray"], best["plain loop"]
    fine = True
    for engine, measured in best.items():
        words = [f"{name}  {engine:<13}{measured.seconds / clients * 1e3:9.3f} ms/client"]
        if name == "H":
            words.append(f"{tokens / measured.seconds:9.0f} useful tokens/s")
        if engine == "fedray":
            how = " ".join(measured.entry.options) or "--runtime local"
            words.append(f"({how}; adapters {distance(measured.adapter, plain.adapter):.1e} from the loop's")
            words[-1] += ")" if name == "H" else f", check {works.check(measured.adapter):.5f})"
        else:
            gap = distance(ours.adapter, measured.adapter)
            target = TARGETS.get(engine, {}).get(name)
            met = gap <= TOLERANCE and (target is None or ours.seconds <= target * measured.seconds)
            words.append(f"fedray takes {ours.seconds / measured.seconds:.3f} of it")
            words.append(f"(target {target})" if target else "")
            words.append("" if gap <= TOLERANCE else f"ADAPTERS DIFFER by {gap:.1e}")
            fine &= met
        print("  ".join(filter(None, words)), flush=True)
    if name == "H":
        speedup = plain.seconds / ours.seconds
        print(f"H  fedray does {speedup:.2f} times the plain loop's tokens a second (target {SPEEDUP_ON_H})")
        return fine and speedup >= SPEEDUP_ON_H
    expected = works.WORKS[name].check
    if abs(works.check(ours.adapter) / expected - 1) > 1e-6:
        print(f"{name}  check is {works.check(ours.adapter):.5f} and should be {expected:.5f}")
        return False
    return fine


def main() -> int:
    """0 if all that ran met its targets, else 1."""
    parser = argparse.ArgumentParser(description="fedray beside its peers.")
    parser.add_argument("--works", default="SMLH", help="letters of S, M, L and H")
    parser.add_argument("--seed", type=int, default=0, help="draws the clients of H")
    parser.add_argument("--device", default="cpu", help="cuda: the local runtime and the loop alone")
    parser.add_argument("--flower-python", type=Path)
    parser.add_argument("--pfl-python", type=Path)
    given = parser.parse_args()
    if given.device == "cpu":
        ways = entries(given.flower_python, given.pfl_python)
    else:
        ways = on_accelerator(given.device)
    fine = True
    for name in given.works:
        if name == "H":
            tokens, clients = sum(client.tokens for client in unlike.draw(given.seed)), unlike.CLIENTS
            print(f"H  seed {given.seed}, {clients} clients, {tokens} tokens; {unlike.source_of_sizes()}")
            own = [entry for entry in ways if entry.engine in ("fedray", "plain loop")]
        else:
            tokens, clients, own = 0, works.WORKS[name].clients, ways
        fine &= show(name, sitting(name, own, given.seed), tokens, clients)
    print("Every target that could be checked is met." if fine else "A target is missed; see above.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
