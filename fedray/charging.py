"""What a configuration says of batteries: how full they start, what is kept back, who charges when."""

from pathlib import Path
from typing import assert_never

import numpy as np

from fedray.battery import Batteries
from fedray.config.sections import Config
from fedray.config.time_sections import BatterySection, ChargingDaily, ChargingTrace, NeverCharging
from fedray.cost import Ints
from fedray.errors import ConfigError
from fedray.fleet import Fleet
from fedray.sessions import DAY_SECONDS, Sessions, diurnal, to_tick
from fedray.traces import load_sessions, rows_of_trace


def batteries_of(config: Config, fleet: Fleet, num_clients: int) -> Batteries | None:
    """Of the clients that train; None where all of them are on mains.

    Raises:
        ConfigError: keys of batteries where nobody has one, central noise beside them, or a trace that cannot
            be read.
    """
    everybody = np.arange(num_clients)
    capacity = fleet.numbers("battery_joules", everybody)
    section = config.battery
    if not np.isfinite(capacity).any():
        if section != BatterySection():
            raise ConfigError(
                "battery says how batteries are charged and kept, and no profile of the fleet has "
                "battery_joules; drop it, or give the fleet that column."
            )
        return None
    if config.privacy.where == "central":
        raise ConfigError(
            "privacy.where: central counts on clients that are drawn by lot among all, and whoever has "
            "worked its battery empty is not asked; set battery_joules: inf, or privacy.where: local."
        )
    sessions, rows, start = _sessions(config, everybody)
    return Batteries(
        capacity_joules=capacity,
        charge_watts=fleet.numbers("charge_watts", everybody),
        sessions=sessions,
        rows=rows,
        start_seconds=to_tick(start),
        start_share=section.start_share,
        reserve_share=section.reserve_share,
    )


def _sessions(config: Config, everybody: Ints) -> tuple[Sessions | None, Ints, float]:
    """When rows are charging, each client's row, and where in it the run starts."""
    chosen = config.battery.charging
    match chosen:
        case NeverCharging():
            return None, everybody, 0.0
        case ChargingDaily():
            share = np.full(len(everybody), chosen.hours * 3600 / DAY_SECONDS)
            sessions = diurnal(
                share,
                config.seed,
                peak_hour=chosen.peak_hour,
                spread_hours=chosen.spread_hours,
                what="charging",
            )
            return sessions, everybody, chosen.start_seconds
        case ChargingTrace():
            sessions = load_sessions(
                Path(chosen.file), kind=chosen.kind, period_seconds=chosen.period_seconds, charging=True
            )
            return sessions, rows_of_trace(config.seed, len(sessions), everybody), chosen.start_seconds
        case _:
            assert_never(chosen)
