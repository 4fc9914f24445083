"""What a simulated round takes, by fleet and by clients of a round; prints milliseconds, asserts nothing.

Run ``python benchmarks/simulated_rounds.py [SELECTION]`` from the root of a checkout. A row should grow with
the clients of a round as they do, and a column hardly with the fleet.
"""

import statistics
import sys
import time

from fedray.config import load_config
from fedray.environment import CACHE_DIR
from fedray.simulation.devices import simulated_scene
from fedray.simulation.loop import Simulated, play_round

FLEETS = (10_000, 100_000, 1_000_000)
ASKED = (250, 500, 1000, 2000)
ROUNDS = 24


def round_seconds(num_clients: int, clients_per_round: int, selection: str) -> float:
    """The median round, the first few left out: they trace, or price a whole fleet."""
    overrides = [
        f"fleet.num_clients={num_clients}",
        f"rounds.clients_per_round={clients_per_round}",
        f"selection={selection}",
    ]
    scene = simulated_scene(load_config("examples/million.yaml", overrides), CACHE_DIR)
    simulated, taken = Simulated.at_start(scene), []
    for number in range(1, ROUNDS + 1):
        started = time.perf_counter()
        play_round(scene, simulated, number, None, started)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[4:])


def main(selection: str) -> None:
    """The table."""
    print(f"{selection}: ms a round" + "".join(f"{asked:>9}" for asked in ASKED) + "  clients a round")
    for num_clients in FLEETS:
        cells = [f"{1e3 * round_seconds(num_clients, asked, selection):9.1f}" for asked in ASKED]
        print(f"{num_clients:>{len(selection) + 12}}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "uniform")
