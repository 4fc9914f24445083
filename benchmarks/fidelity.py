"""How true virtual time is; prints figures, asserts nothing of them.

``python benchmarks/fidelity.py phones FILE`` holds out kinds of layers of a table of on-phone training times
(see `phone_fit`). ``python benchmarks/fidelity.py here`` makes two device classes of this machine, one
thread and two: clients train assignments alone, rates are fitted to some of the assignments, and the others'
times are predicted; then policies are ordered by the round they would take, predicted and measured.
"""

import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from phone_fit import phones
from scipy.optimize import minimize
from scipy.stats import kendalltau, spearmanr

import fedray
from fedray import rounds
from fedray.adapter import GlobalState
from fedray.assignment import Assignment
from fedray.config import load_config
from fedray.cost import Floats, Ints
from fedray.environment import CACHE_DIR
from fedray.policy import Cohort, Offers
from fedray.price_sheet import compute_seconds_of
from fedray.scene import Scene, furnish, set_scene
from fedray.training.job import Job
from fedray.training.shapes import initial_adapter
from fedray.training.train import train_pack
from fedray.training.workshop import open_workshop

THREADS = (1, 2)  # of each device class
CLIENTS = 8
OVERRIDES = (
    "runtime=local",
    "server={}",
    f"data.num_clients={CLIENTS}",
    "data.unseen_clients=0",
    "data.per_client=false",
    "menu={ranks: [2, 16], depths: [1, 3, all], per_device_train_batch_size: [2, 8], "
    "recompute: [false, true]}",
    "training.max_steps=3",
    "rounds.clients_per_round=8",
)
# How often everything is measured, once through and again: the least counts, the machine may be shared.
PASSES = 5


def quickest(cohort: Cohort, offers: Offers) -> Ints:
    """Whatever takes least time."""
    return offers.best(-offers.virtual_seconds)


def slowest(cohort: Cohort, offers: Offers) -> Ints:
    """Whatever takes most."""
    return offers.best(offers.virtual_seconds)


def recomputing(cohort: Cohort, offers: Offers) -> Ints:
    """The largest with recomputation."""
    return offers.best(offers.sum_of_ranks, among=offers.each([entry.recompute for entry in offers.menu]))


POLICIES = {
    "quickest": quickest,
    "slowest": slowest,
    "recomputing": recomputing,
    "deep_for_the_fast": "{name: examples/deep_for_the_fast.py}",
    "quick ones deep": "{name: examples/deep_for_the_fast.py, options: {patience: 1.2}}",
    "everybody_smallest": "{name: everybody_smallest}",
    "drop_weak": "{name: drop_weak, options: {min_share: 0.5}}",
    "largest_that_fits": "{name: largest_that_fits}",
}
# The aggregation decides nothing here, but it must go with the policy.
_FACTORS = "aggregation=factor_mean"


@dataclass
class Machine:
    """Measures clients' jobs on this machine.

    Attributes:
        seconds: by client and assignment.
    """

    scene: Scene
    seconds: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blueprint, stock, _ = furnish(self.scene, "cpu")
        self._workshop = open_workshop(blueprint, stock)
        scene = self.scene
        adapter = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, scene.config.seed)
        self._state = GlobalState(adapter=adapter)

    def measure(self, pairs: Sequence[tuple[int, Assignment]]) -> None:
        """Wall seconds of each client alone: padded, recomputing where the assignment says so."""
        jobs = {(client, entry.to_json()): self._job(client, entry) for client, entry in pairs}
        for _ in range(PASSES):
            for key in sorted(jobs, key=lambda key: THREADS[key[0] % 2]):
                torch.set_num_threads(THREADS[key[0] % 2])
                begun = time.perf_counter()
                train_pack(self._workshop, [jobs[key]], recompute=True)
                taken = time.perf_counter() - begun
                self.seconds[key] = min(taken, self.seconds.get(key, np.inf))

    def _job(self, client: int, assignment: Assignment) -> Job:
        scene, alone = self.scene, self.scene.cohort(1, np.array([client]))
        start = rounds.sender(scene, self._state, 1)(assignment, client)
        return rounds.job_for(scene, alone, assignment, start, {})

    def measured(self, client: int, assignment: Assignment) -> float:
        """What was."""
        return self.seconds[client, assignment.to_json()]

    def predicted(self, client: int, assignment: Assignment, rates: Floats) -> float:
        """Virtual seconds of the same on a device of these FLOP/s and bytes/s."""
        scene, alone = self.scene, self.scene.cohort(1, np.array([client]))
        flops_per_s, memory_bytes_per_s = rates[:, None]
        device = replace(
            alone.device,
            flops_per_s={assignment.dtype: flops_per_s},
            memory_bytes_per_s=memory_bytes_per_s,
        )
        cohort = replace(alone, device=device)
        return float(compute_seconds_of([assignment], cohort, scene.footprint, scene.server)[0])


def rates_of(machine: Machine, threads: int, assignments: Sequence[Assignment]) -> Floats:
    """The two rates of a class of clients that fit these assignments best."""
    pairs = [(c, a) for c in range(CLIENTS) if THREADS[c % 2] == threads for a in assignments]
    measured = np.array([machine.measured(*pair) for pair in pairs])

    def loss(logarithms: Floats) -> float:
        predicted = [machine.predicted(*pair, np.exp(logarithms)) for pair in pairs]
        return float(np.abs(np.log(np.array(predicted) / measured)).mean())

    rates: Floats = np.exp(minimize(loss, (24.0, 23.0), method="Nelder-Mead").x)
    return rates


def write_fleet(path: Path, rates: dict[int, Floats]) -> str:
    """Clients by turns of one class and the other, with unlike memory and links that take no time."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            [
                "device_class",
                "memory_bytes",
                "flops_per_s_fp32",
                "memory_bytes_per_s",
                "up_bps",
                "down_bps",
                "attention",
            ]
        )
        for client in range(CLIENTS):
            threads, memory = THREADS[client % 2], (97 + 12 * (client // 2)) * 2**20
            rows.writerow([f"{threads} threads", memory, *rates[threads], 1e15, 1e15, "memory_efficient"])
    return str(path)


def here() -> None:
    """Print rank correlations, errors and the order of policies."""
    folder = Path(tempfile.mkdtemp())
    guessed = {threads: np.array([1e10, 1e10]) for threads in THREADS}
    shared = [*OVERRIDES, f"fleet={write_fleet(folder / 'fleet.csv', guessed)}", _FACTORS]
    scene = set_scene(
        load_config("examples/quickstart.yaml", [*shared, "policy=largest_that_fits"]), CACHE_DIR
    )
    machine = Machine(scene)
    # By turns to one side and the other: both have every depth, batch and rank.
    order = np.random.default_rng(0).permutation(len(scene.menu))
    fit_on, held_out = ([scene.menu[i] for i in part] for part in (order[::2], order[1::2]))
    machine.measure([(client, entry) for client in range(CLIENTS) for entry in scene.menu])
    rates, found = {}, []
    for threads in THREADS:
        rates[threads] = rates_of(machine, threads, fit_on)
        pairs = [(c, a) for c in range(CLIENTS) if THREADS[c % 2] == threads for a in held_out]
        told = np.array([machine.predicted(*pair, rates[threads]) for pair in pairs])
        took = np.array([machine.measured(*pair) for pair in pairs])
        found.append((told, took))
        _show(f"{threads} threads", told, took)
        print(f"    fitted: {rates[threads][0]:.3g} FLOP/s, {rates[threads][1]:.3g} bytes/s", flush=True)
    _show("both", *(np.concatenate(side) for side in zip(*found, strict=True)))
    fleet = write_fleet(folder / "fitted.csv", rates)
    _policies(machine, [*OVERRIDES, f"fleet={fleet}", _FACTORS])


def _show(name: str, told: Floats, took: Floats) -> None:
    errors = np.abs(told / took - 1)
    print(
        f"{name}: {len(took)} held-out client times, {took.min():.3f} to {took.max():.3f} s; "
        f"rank correlation {spearmanr(told, took).statistic:.3f}; error {np.median(errors):.0%} median, "
        f"{np.quantile(errors, 0.9):.0%} at 90 %",
        flush=True,
    )


def _policies(machine: Machine, overrides: Sequence[str]) -> None:
    """Each policy's round: the clients' seconds in all, and those of the slowest."""
    told, took = [], []
    for name, policy in POLICIES.items():
        named = [f"policy={policy}"] if isinstance(policy, str) else []
        given_here = None if named else policy
        planned = fedray.plan(
            "examples/quickstart.yaml", overrides=[*overrides, *named], policy=given_here
        ).clients
        given = [(one.client_id, one.assignment) for one in planned if one.assignment is not None]
        measured = [machine.measured(client, assignment) for client, assignment in given]
        virtual = [one.virtual_seconds for one in planned if one.virtual_seconds is not None]
        told.append((sum(virtual), max(virtual)))
        took.append((sum(measured), max(measured)))
        print(
            f"{name:22}{len(given):3} clients; all: {told[-1][0]:7.2f} s predicted,{took[-1][0]:7.2f} "
            f"measured; slowest: {told[-1][1]:6.2f} and {took[-1][1]:6.2f}",
            flush=True,
        )
    for what, a, b in zip(("all", "slowest"), zip(*told, strict=True), zip(*took, strict=True), strict=True):
        same = np.array_equal(np.argsort(a, kind="stable"), np.argsort(b, kind="stable"))
        tau = kendalltau(a, b).statistic
        print(f"order by {what}: {'the same' if same else 'not the same'}, Kendall's tau {tau:.2f}")


def main(arguments: Sequence[str]) -> None:
    """One of the two."""
    match arguments:
        case ["phones", file]:
            phones(Path(file))
        case ["here"]:
            here()
        case _:
            sys.exit("python benchmarks/fidelity.py phones FILE | here")


if __name__ == "__main__":
    main(sys.argv[1:])
