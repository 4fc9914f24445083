"""Who is online at a moment of a run: by a trace, by a daily rhythm, or always but for declared drop-outs."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import numpy as np

from fedray.config.sections import Config
from fedray.config.time_sections import DeclaredShare, Diurnal, OnlineTrace
from fedray.cost import Floats, Ints
from fedray.errors import ConfigError, PolicyError
from fedray.fleet import Fleet
from fedray.policy import Bools
from fedray.sessions import Sessions, diurnal, to_tick
from fedray.traces import load_sessions, rows_of_trace

_FEW = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """The clients' sessions. Moments are virtual seconds from the run's start.

    Attributes:
        sessions: None where nobody has any, and all are online all the time.
        rows: of the sessions, one for each client, [clients].
        start_seconds: where in the sessions the run starts.
    """

    sessions: Sessions | None = None
    rows: Ints
    start_seconds: float = 0.0

    def online(self, client_ids: Ints, at_seconds: float) -> Bools:
        """Which of these are online at the moment, [asked]."""
        if self.sessions is None:
            return np.ones(len(client_ids), np.bool_)
        return self.sessions.is_online(self.rows[client_ids], at_seconds + self.start_seconds)

    def until(self, client_ids: Ints, at_seconds: float) -> Floats:
        """When each goes offline that is online at the moment, [asked]; infinity for never."""
        if self.sessions is None:
            return np.full(len(client_ids), np.inf)
        end = self.sessions.online_until(self.rows[client_ids], at_seconds + self.start_seconds)
        return end - self.start_seconds

    def stays(self, client_ids: Ints, from_seconds: float, until_seconds: float) -> Bools:
        """Which of these are online from one moment to another without a break, [asked]."""
        if self.sessions is None:
            return np.ones(len(client_ids), np.bool_)
        there = self.online(client_ids, from_seconds)
        return there & (self.until(client_ids, from_seconds) >= until_seconds)

    def opens(self, client_ids: Ints, at_seconds: float) -> float:
        """The first moment from ``at_seconds`` on at which one of these is online; infinity for never."""
        if self.sessions is None:
            return at_seconds
        # Of many clients a few are looked at first: mostly one of them is online.
        for first_id in range(0, len(client_ids), _FEW):
            if self.online(client_ids[first_id : first_id + _FEW], at_seconds).any():
                return at_seconds
        found = self.sessions.next_online(self.rows[client_ids], at_seconds + self.start_seconds)
        return float(found.min(initial=np.inf)) - self.start_seconds

    def following(self, client_ids: Ints, at_seconds: Floats) -> Floats:
        """The first moment from its own on at which each is online, [asked]; infinity for never."""
        if self.sessions is None:
            return at_seconds
        return self.sessions.next_online(self.rows[client_ids], at_seconds + self.start_seconds) - (
            self.start_seconds
        )

    def asked(self, chosen: Ints, at_seconds: float) -> tuple[float, Ints]:
        """When a round with these clients starts, and who of them is online then, ascending.

        That is at once, or if all are offline when the first of them comes online.

        Raises:
            PolicyError: none of them ever does.
        """
        begins = self.opens(chosen, at_seconds)
        if np.isinf(begins):
            raise PolicyError(
                f"select chose {len(chosen)} clients, none of whom is ever online; choose among "
                "view.sample()."
            )
        return begins, np.sort(chosen[self.online(chosen, begins)])


def presence_of(config: Config, fleet: Fleet, num_clients: int) -> Presence:
    """What the configuration says of the clients that train.

    A fleet's clients take the trace's in an order drawn by the seed, one each, and again from the first
    where there are fewer in the trace.

    Raises:
        ConfigError: a trace that cannot be read, or in which none of the clients is ever online.
    """
    everybody = np.arange(num_clients)
    chosen = config.availability
    match chosen:
        case DeclaredShare():
            return Presence(rows=everybody)
        case OnlineTrace():
            kind, period = chosen.kind, chosen.period_seconds
            sessions = load_sessions(Path(chosen.file), kind=kind, period_seconds=period)
            rows = rows_of_trace(config.seed, len(sessions), everybody)
        case Diurnal():
            share, hour, spread = fleet.availability(everybody), chosen.peak_hour, chosen.spread_hours
            sessions = diurnal(share, config.seed, peak_hour=hour, spread_hours=spread)
            rows = everybody
        case _:
            assert_never(chosen)
    found = Presence(sessions=sessions, rows=rows, start_seconds=to_tick(chosen.start_seconds))
    if np.isinf(found.opens(everybody, 0.0)):
        raise ConfigError(
            f"availability: none of the {num_clients} clients is ever online; give another trace, or more "
            "clients."
        )
    return found
