"""What clients declare: profiles, kept as one Arrow table, a row per client."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from fedray.cost import Device, Floats, Ints
from fedray.errors import ConfigError
from fedray.mix import Correlation, draw, load_mix
from fedray.profile import SCHEMA, TEXT, Profile, conform
from fedray.shipped import shipped

__all__ = ["Fleet", "Profile", "load_fleet"]

# Arrow's own 1 MiB takes twice as long for a million rows (benchmarks/fleet_load.py).
_BLOCK_BYTES = 4 * 2**20


class Fleet:
    """All profiles. Client ids are the rows of ``table``, from 0.

    Attributes:
        table: columns as in `SCHEMA`, checked.
    """

    def __init__(self, table: pa.Table, source: str = "The fleet") -> None:
        """Checks every column.

        Args:
            table: the columns of `SCHEMA`; those with a default in `Profile` may be missing.
            source: where the table comes from, for messages.

        Raises:
            ConfigError: a missing or unknown column, a wrong type, a value out of range.
        """
        self.table: pa.Table = conform(table, source)
        # A column is merged into one array when it is first asked for, so that loading does not wait for it.
        self._merged: dict[str, pa.Array] = {}

    @staticmethod
    def from_profiles(profiles: Sequence[Profile]) -> "Fleet":
        """A fleet of hand-written profiles, client ids in their order. Raises ConfigError."""
        rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names[1:]}
        for profile in profiles:
            for name, values in rows.items():
                values.append(getattr(profile, name))
        rows["resources"] = [json.dumps(dict(mapping), sort_keys=True) for mapping in rows["resources"]]
        fp32 = rows["flops_per_s_fp32"]
        bf16 = zip(rows["flops_per_s_bf16"], fp32, strict=True)
        rows["flops_per_s_bf16"] = [same if rate is None else rate for rate, same in bf16]
        return Fleet(pa.table(rows), "The list of profiles")

    def __len__(self) -> int:
        """How many clients."""
        return int(self.table.num_rows)

    def profile(self, client_id: int) -> Profile:
        """One client's. Raises IndexError for an id that is not a row."""
        if not 0 <= client_id < len(self):
            raise IndexError(f"client {client_id} of a fleet of {len(self)}")
        row = self.table.slice(client_id, 1).to_pylist()[0]
        del row["client_id"]
        return Profile(**{**row, "resources": json.loads(row["resources"])})

    def device(self, client_ids: Ints) -> Device:
        """What pricing reads, as arrays [clients]."""
        names = [f.name for f in dataclasses.fields(Device) if f.name != "flops_per_s"]
        rates = {dtype: self.numbers(f"flops_per_s_{dtype}", client_ids) for dtype in ("fp32", "bf16")}
        return Device(flops_per_s=rates, **{name: self.numbers(name, client_ids) for name in names})

    def numbers(self, column: str, client_ids: Ints) -> Any:
        """One numeric column of some clients, [clients]; int64 for bytes, float64 for the rest."""
        return self._array(column).to_numpy()[client_ids]

    def attention(self, client_ids: Ints) -> NDArray[np.str_]:
        """The attention kernel of each, [clients]."""
        return self._text("attention", client_ids)

    def device_class(self, client_ids: Ints) -> NDArray[np.str_]:
        """The device class of each, [clients]."""
        return self._text("device_class", client_ids)

    def availability(self, client_ids: Ints) -> Floats:
        """The share of time each is online, [clients]."""
        online: Floats = self.numbers("availability", client_ids)
        return online

    def data_size_rank(self, client_ids: Ints) -> Floats:
        """Where each stands in size of data, 0 to 1, [clients]."""
        ranks: Floats = self.numbers("data_size_rank", client_ids)
        return ranks

    def resources(self, client_id: int) -> Mapping[str, float]:
        """The Ray resources one client's own actor reserves."""
        return self.profile(client_id).resources

    def save(self, path: str | Path) -> None:
        """Writes what `load_fleet` reads, as Parquet or CSV by the file's suffix. Raises ConfigError."""
        target = Path(path)
        if target.suffix not in (".parquet", ".csv"):
            raise ConfigError(f"A fleet is saved as .parquet or .csv, found {target.name!r}.")
        # Written beside its place and then moved, so that a full disk leaves no half of a fleet.
        partial = target.with_name(f"{target.name}.partial")
        write = pa.parquet.write_table if target.suffix == ".parquet" else pa.csv.write_csv
        try:
            write(self.table, partial)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ConfigError(f"The fleet cannot be written to {target}: {error}.") from error

    def _array(self, column: str) -> pa.Array:
        if column not in self._merged:
            self._merged[column] = self.table.column(column).combine_chunks()
        return self._merged[column]

    def _text(self, column: str, client_ids: Ints) -> NDArray[np.str_]:
        encoded = self._array(column)
        words = np.array(encoded.dictionary.to_pylist(), np.str_)
        chosen: NDArray[np.str_] = words[encoded.indices.to_numpy()[client_ids]]
        return chosen


def load_fleet(
    source: str | Path,
    num_clients: int | None = None,
    seed: int = 0,
    *,
    memory_share: float | None = None,
    correlation: Correlation | None = None,
) -> Fleet:
    """A fleet by name, or from a YAML mix, a CSV or a Parquet file.

    Args:
        source: a name (``"phones"``, a mix that fedray brings along) or a path.
        num_clients: how many to draw from a mix; how many leading rows of a table, all by default.
        seed: of the run; a mix draws client i the same for any ``num_clients``.
        memory_share: share of a client's RAM for this job, in place of the mix's own.
        correlation: of memory, compute, links and data size, in place of the mix's own.

    Raises:
        ConfigError: no such fleet, a mistake in the file, or an option that cannot take effect.
    """
    path = _find(source)
    if num_clients is not None and num_clients < 1:
        raise ConfigError(f"num_clients must be at least 1, found {num_clients}.")
    if path.suffix in (".yaml", ".yml"):
        if num_clients is None:
            raise ConfigError(
                f"The fleet {path.name} is a mix of device classes; say how many with num_clients."
            )
        columns = draw(load_mix(path), num_clients, seed, memory_share, correlation)
        return Fleet(pa.table(columns), f"The fleet {path}")
    for name, value in (("memory_share", memory_share), ("correlation", correlation)):
        if value is not None:
            raise ConfigError(
                f"{name} shapes clients drawn from a YAML mix; {path.name} lists its own, so leave it out."
            )
    fleet = Fleet(_read_table(path), f"The fleet {path}")
    if num_clients is None or num_clients == len(fleet):
        return fleet
    if num_clients > len(fleet):
        raise ConfigError(f"num_clients is {num_clients}, but {path} has {len(fleet)} clients.")
    return Fleet(fleet.table.slice(0, num_clients), f"The fleet {path}")


def _find(source: str | Path) -> Path:
    path = Path(source)
    if isinstance(source, Path) or path.suffix or len(path.parts) > 1:
        if path.suffix not in (".yaml", ".yml", ".csv", ".parquet"):
            raise ConfigError(f"A fleet is a name or a .yaml, .csv or .parquet file, found {str(source)!r}.")
        if not path.is_file():
            raise ConfigError(f"There is no fleet file {path}; give a path that exists, or a name.")
        return path
    folder = shipped("cluster_configs") / "fleets"
    named = folder / f"{source}.yaml"
    if not named.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(
            f"There is no fleet named {source!r}; fedray brings {known}, or give a file's path."
        )
    return named


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        # Numbers are read as floats and narrowed with a check: a first block of whole numbers proves nothing.
        numbers = {f.name: pa.float64() for f in SCHEMA if f.type != TEXT}
        text = {f.name: TEXT for f in SCHEMA if f.type == TEXT}
        convert = pa.csv.ConvertOptions(column_types=numbers | text)
        return pa.csv.read_csv(path, pa.csv.ReadOptions(block_size=_BLOCK_BYTES), convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"The fleet {path} cannot be read: {' '.join(str(error).split())}") from error
