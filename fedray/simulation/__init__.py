"""The round loop without training: who is asked, given what, and done when, for fleets of a million.

Everything a run decides and times is decided and timed here by the same code, so a simulation has a run's
numbers in every column that training does not make. It knows no losses: a policy that asks for them is shown
that all are alike, unless those of a recorded run are replayed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from fedray import checkpoint
from fedray.config import Config
from fedray.environment import CACHE_DIR, run_folder
from fedray.fitting import devices_of
from fedray.record import ClientRecord, RoundRecord
from fedray.report import write_report
from fedray.simulation.devices import simulated_scene
from fedray.simulation.loop import Simulated, play_round
from fedray.simulation.replay import Recorded, read_recorded

__all__ = ["Simulation", "simulate"]

Show = Callable[[RoundRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What a simulation came to; the same lies in its folder. No ``report`` where none was asked for."""

    out: Path
    rounds: tuple[RoundRecord, ...]
    clients: tuple[ClientRecord, ...]
    report: Path | None


def simulate(
    config: Config,
    out: Path,
    show: Show | None = None,
    policy: object | None = None,
    replay: Path | None = None,
) -> Simulation:
    """Every round on the virtual clock, and records of it in a folder.

    Args:
        config: checked already.
        out: the folder; nothing is left in it of a simulation that fails.
        show: called with each round's record.
        policy: given in Python, in place of the one that the configuration names.
        replay: the folder of a trained run whose losses and accuracies are taken.

    Raises:
        FedrayError: the configuration cannot be simulated, or a replay decides something else than the run.
    """
    scene = simulated_scene(config, CACHE_DIR, policy)
    recorded = None if replay is None else read_recorded(replay)
    simulated = Simulated.at_start(scene)
    with run_folder(out, config, "cpu", config.packs.threads_per_pack):
        checkpoint.write_devices(out, devices_of(scene))
        for number in range(1, config.rounds.num_rounds + 1):
            started = perf_counter()
            record = play_round(scene, simulated, number, recorded, started)
            if show is not None:
                show(record)
        _write(out, simulated, recorded)
    return Simulation(
        out=out,
        rounds=tuple(simulated.rounds),
        clients=tuple(simulated.clients),
        report=write_report(out) if config.report else None,
    )


def _write(out: Path, simulated: Simulated, recorded: Recorded | None) -> None:
    evaluations = () if recorded is None else recorded.evaluations_until(len(simulated.rounds))
    checkpoint.write_records(out, simulated.rounds, simulated.clients, evaluations)
