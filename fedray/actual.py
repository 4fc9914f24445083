"""What devices really are: prices and policies go by declarations, the clock by this.

A client's actual rates are its declared ones times factors, each drawn from the run's seed for itself: a
misreport that stays, a drift that grows with virtual time, a jitter that is new in every round, and what
budgets over time leave to the job.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from scipy.special import ndtri

from fedray.config.sections import Config
from fedray.config.time_sections import ActualSection
from fedray.cost import Device, Floats, Ints
from fedray.errors import ConfigError
from fedray.fleet import Fleet, load_fleet
from fedray.seeds import derive_seed, uniforms
from fedray.sessions import DAY_SECONDS, last_started

_SHARES = ("memory_share", "compute_share", "link_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What is left to the job over time: shares that hold from a moment until a row's next one.

    Attributes:
        starts: ascending within each row, row after row, [entries].
        offsets: where each row begins, [rows + 1].
        shares: of memory, compute and links, [entries, 3].
        period_seconds: after which all rows start again.
    """

    starts: Floats
    offsets: Ints
    shares: Floats
    period_seconds: float

    def at(self, client_ids: Ints, at_seconds: float) -> Floats:
        """The shares at a moment, [clients, 3]; client k has row k, beginning again after the last."""
        rows = client_ids % (len(self.offsets) - 1)
        time = np.full(len(rows), np.mod(at_seconds, self.period_seconds))
        last = last_started(self.starts, self.offsets, rows, time)
        # Before a row's first entry the last one of the period before holds.
        found: Floats = self.shares[np.where(last < self.offsets[rows], self.offsets[rows + 1] - 1, last)]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """The actual devices of a run.

    Attributes:
        section: the spreads.
        seed: of the run.
        fleet: what the clients are before any factor; None if that is what they declare.
    """

    section: ActualSection
    seed: int
    fleet: Fleet | None
    budgets: Budgets | None

    @property
    def as_declared(self) -> bool:
        """Whether every client is just what it declares, at any time."""
        spreads = ("misreport", "drift", "jitter")
        given = [value for name, value in self.section if name.rpartition("_")[2] in spreads]
        return self.fleet is None and self.budgets is None and not any(given)

    def device(self, declared: Device, client_ids: Ints, round_number: int, at_seconds: float) -> Device:
        """The clients' actual devices at a moment of the run, [clients]; storage and power as declared.

        Args:
            declared: of these clients.
            client_ids: rows of the fleet.
            round_number: of the jitter.
            at_seconds: virtual, from the run's start.
        """
        if self.as_declared:
            return declared
        own, section = declared, self.section
        if self.fleet is not None:
            found = self.fleet.device(client_ids)
            own = replace(found, storage_bytes=declared.storage_bytes)
        days = at_seconds / DAY_SECONDS
        memory = self._factor("memory misreport", client_ids, section.memory_misreport)
        compute = (
            self._factor("compute misreport", client_ids, section.compute_misreport)
            * self._factor("compute drift", client_ids, section.compute_drift * days)
            * self._factor("compute jitter", client_ids, section.compute_jitter, round_number)
        )
        links = self._factor("link misreport", client_ids, section.link_misreport) * self._factor(
            "link jitter", client_ids, section.link_jitter, round_number
        )
        if self.budgets is not None:
            shares = self.budgets.at(client_ids, at_seconds)
            memory, compute, links = memory * shares[:, 0], compute * shares[:, 1], links * shares[:, 2]
        return replace(
            own,
            memory_bytes=np.floor(own.memory_bytes * memory).astype(np.int64),
            flops_per_s={dtype: rate * compute for dtype, rate in own.flops_per_s.items()},
            memory_bytes_per_s=own.memory_bytes_per_s * compute,
            up_bps=own.up_bps * links,
            down_bps=own.down_bps * links,
        )

    def crash_seconds(self, client_ids: Ints, round_number: int) -> Floats:
        """When each crashes, from the moment at which it is asked, [clients]; infinity where nobody does.

        Crashes are as likely at any moment (exponential times), so a longer trip is lost more often.
        """
        if not self.section.crashes_per_hour:
            return np.full(len(client_ids), np.inf)
        drawn = uniforms(derive_seed(self.seed, "crashes", round_number), client_ids)[:, 0]
        seconds: Floats = -np.log1p(-drawn) * 3600 / self.section.crashes_per_hour
        return seconds

    def _factor(self, what: str, client_ids: Ints, spread: float, *path: int) -> Floats:
        """Lognormal with median 1, [clients]: a matter of the seed, the path and each client alone."""
        if not spread:
            return np.ones(len(client_ids))
        drawn = uniforms(derive_seed(self.seed, what, *path), client_ids)[:, 0]
        # A uniform of 0 would be a factor of 0.
        factor: Floats = np.exp(spread * ndtri(np.maximum(drawn, 2.0**-53)))
        return factor


def actual_of(config: Config, num_clients: int) -> Actual:
    """What the configuration says of the clients' actual devices. Raises ConfigError."""
    section = config.actual
    fleet = budgets = None
    if section.fleet is not None:
        path = Path(section.fleet)
        if path.suffix not in (".csv", ".parquet"):
            raise ConfigError(
                f"actual.fleet is a .csv or .parquet table of clients, found {section.fleet!r}."
            )
        fleet = load_fleet(path, num_clients)
    if section.budgets is not None:
        budgets = load_budgets(Path(section.budgets), section.budgets_period_seconds or DAY_SECONDS)
    return Actual(section=section, seed=config.seed, fleet=fleet, budgets=budgets)


def load_budgets(path: Path, period_seconds: float) -> Budgets:
    """Budgets of a Parquet or CSV table: client (whole numbers from 0), start_s and some of the shares.

    Args:
        path: of the table. A share that has no column is 1.
        period_seconds: after which all clients' budgets start again.

    Raises:
        ConfigError: a file that cannot be read, a column that is missing or unknown, a value out of range.
    """
    try:
        table = pa.parquet.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
        columns = {name: table.column(name).cast(pa.float64()).to_numpy() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"The budgets {path} cannot be read: {' '.join(str(error).split())}") from error
    known = ("client", "start_s", *_SHARES)
    wrong = [name for name in columns if name not in known] + [n for n in known[:2] if n not in columns]
    if wrong or not table.num_rows:
        found = ", ".join(columns) if table.num_rows else "no rows"
        raise ConfigError(
            f"The budgets {path} have {found}; give client, start_s and some of {', '.join(_SHARES)}."
        )
    clients, starts = columns["client"], columns["start_s"]
    ids = np.unique(clients)
    if not np.array_equal(ids, np.arange(len(ids))):
        raise ConfigError(
            f"The budgets {path}: clients count from 0 without gaps, found {ids[-1]:g} as the last."
        )
    if not ((starts >= 0) & (starts < period_seconds)).all():
        raise ConfigError(
            f"The budgets {path}: start_s is from 0 to below the period of {period_seconds:g} s; found "
            f"{starts.min():g} to {starts.max():g}."
        )
    shares = np.stack([columns.get(name, np.ones(table.num_rows)) for name in _SHARES], axis=1)
    if not ((shares > 0) & (shares <= 1)).all():
        raise ConfigError(
            f"The budgets {path}: shares are above 0 and at most 1; found {shares.min():g} or more."
        )
    order = np.lexsort((starts, clients))
    offsets = np.searchsorted(clients[order], np.arange(len(ids) + 1)).astype(np.int64)
    return Budgets(starts=starts[order], offsets=offsets, shares=shares[order], period_seconds=period_seconds)
