"""What longest first by learned wall seconds saves; prints figures, asserts nothing.

Run ``python benchmarks/placement.py`` from the root of a checkout. Rounds of unlike clients are carried out
here, one pack after the other; what each took is then dealt to several workers as on Ray: by what earlier
rounds taught, by sizes alone, as they come, and as somebody would who knew.
"""

import heapq
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from fedray.adapter import GlobalState
from fedray.config import load_config
from fedray.cost import Floats
from fedray.engine import play_round
from fedray.environment import CACHE_DIR
from fedray.holdings import Holdings
from fedray.placement import Load, WallSeconds, longest_first
from fedray.progress import Progress
from fedray.runtime.carrier import Done, Order, TrainPack, load_of
from fedray.runtime.local import LocalRuntime
from fedray.scene import furnish, set_scene
from fedray.training.shapes import initial_adapter

ROUNDS, WORKERS = 6, (2, 4, 8)
OVERRIDES = (
    "runtime=local",
    "server={}",
    "menu={ranks: [2, 8, 16], depths: [1, 3, all], per_device_train_batch_size: [2, 8]}",
    "data.num_clients=64",
    "data.partitioner={name: dirichlet, alpha: 0.2, min_partition_size: 2}",
    "rounds={num_rounds: 6, clients_per_round: 48, eval_rounds: 6}",
    "audit={distinct: false, share: 0}",
    "packs.clients_per_pack=2",
    "policy=fedra",
    "aggregation=factor_mean",
)


class Timing(LocalRuntime):
    """The local runtime, which notes what orders held and took."""

    noted: list[tuple[Load, float]]

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """As asked."""
        started = time.perf_counter()
        for order, done in zip(orders, super().carry_out(orders), strict=True):
            if isinstance(order, TrainPack):
                self.noted.append((load_of(order), time.perf_counter() - started))
            yield done
            started = time.perf_counter()


def measured() -> list[list[tuple[Load, float]]]:
    """Loads and wall seconds of each round's packs."""
    scene = set_scene(load_config("examples/quickstart.yaml", OVERRIDES), CACHE_DIR)
    adapter = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, scene.config.seed)
    progress = Progress(
        state=GlobalState(adapter=adapter), holdings=Holdings(scene.num_clients, preinstalled=False)
    )
    blueprint, stock, _ = furnish(scene, "cpu")
    runtime, found = Timing(blueprint, stock), []
    for number in range(1, ROUNDS + 1):
        runtime.noted = []
        play_round(scene, progress, runtime, number)
        found.append(runtime.noted)
    runtime.close()
    return found


def ends(seconds: Floats, order: Sequence[int], workers: int) -> float:
    """When the last is back if whoever is free takes the next, over the least that is possible."""
    free = [0.0] * workers
    for place in order:
        heapq.heappush(free, heapq.heappop(free) + seconds[place])
    return max(free) / max(seconds.max(), seconds.sum() / workers)


def main() -> None:
    """A line a round, and means over those that something was known in."""
    wall, found = WallSeconds(), defaultdict(list)
    for number, pairs in enumerate(measured(), start=1):
        loads, seconds = [load for load, _ in pairs], np.array([taken for _, taken in pairs])
        told, everybody = wall.predicted(loads), len(loads)
        error = "nothing known"
        if told is not None:
            error = f"error {np.median(np.abs(told / seconds - 1)):.0%} median"
            orders = {
                "learned": longest_first(told, everybody),
                "by size": longest_first(np.array([load.work for load in loads]), everybody),
                "as they come": range(everybody),
                "as if known": longest_first(seconds, everybody),
            }
            for name, order in orders.items():
                found[name].append([ends(seconds, order, workers) for workers in WORKERS])
        print(f"round {number}: {everybody} packs, {seconds.min():.2f} to {seconds.max():.2f} s; {error}")
        for load, taken in pairs:
            wall.learn(load, taken)
    print(f"over the least possible, on {', '.join(map(str, WORKERS))} workers, mean of rounds:")
    for name, ratios in found.items():
        print(f"    {name:13}" + "".join(f"{ratio:8.3f}" for ratio in np.mean(ratios, axis=0)))


if __name__ == "__main__":
    main()
