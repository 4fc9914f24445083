"""How a fleet is drawn from device classes: a YAML mix, and a Gaussian copula over what differs.

Every client has four latent normals, one each for memory, compute, links and data size, and their
correlation is the mix's. Compute picks the device class (classes are listed from slow to fast) and
the place inside it; links and data size are drawn over the whole fleet; memory is drawn inside the
class. So each class keeps the memory its source states, and memory and compute go together between
classes as the devices do, whatever the correlation says about clients of one class.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from scipy.special import expit, logit, ndtr, ndtri

from fedray.assignment import Attention
from fedray.errors import ConfigError
from fedray.seeds import generator
from fedray.units import parse_bps, parse_bytes, parse_bytes_per_s, parse_flops_per_s

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
Correlation = float | Sequence[Sequence[float]]
T = TypeVar("T")

# The order of a correlation matrix's rows; the noise of rtt and of availability belongs to no one else.
QUANTITIES = ("memory", "compute", "links", "data_size")
MEMORY, COMPUTE, LINKS, DATA_SIZE, RTT, ONLINE = range(6)


def _read(parse: Callable[[str | float], float]) -> BeforeValidator:
    """`parse` for pydantic, which names the place of a ValueError and of no other error."""

    def checked(text: Any) -> float:
        try:
            return parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(checked)


Bytes = Annotated[int, _read(parse_bytes), Field(gt=0)]
Bps = Annotated[float, _read(parse_bps), Field(gt=0)]
FlopsPerS = Annotated[float, _read(parse_flops_per_s), Field(gt=0)]
BytesPerS = Annotated[float, _read(parse_bytes_per_s), Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Unknown keys raise."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Strict, Generic[T]):
    """One number, where it comes from, and how far clients lie from it.

    ``sigma`` spreads clients around ``value``, which stays the median: of the logarithm, or of the
    log-odds where the number is a share of time.
    """

    value: T
    source: str = Field(min_length=1)
    sigma: Amount = 0.0


class Fixed(Strict, Generic[T]):
    """One number without a spread, and where it comes from."""

    value: T
    source: str = Field(min_length=1)


class Choice(Strict):
    """A few sizes, each with its share of the class, and where they come from."""

    values: dict[Bytes, Share] = Field(min_length=1)
    source: str = Field(min_length=1)


class Rates(Strict):
    """Sustained arithmetic rates by dtype; they share the client's place in its class."""

    fp32: Figure[FlopsPerS]
    bf16: Figure[FlopsPerS]


class DeviceClass(Strict):
    """Clients of one kind of device; fields as in `fedray.fleet.Profile`."""

    name: str = Field(min_length=1)
    share: Fixed[Share]
    ram: Choice
    memory_share: Figure[Share] | None = None
    storage_bytes: Fixed[Bytes]
    flops_per_s: Rates
    memory_bytes_per_s: Figure[BytesPerS]
    attention: Attention
    availability: Figure[Share]
    compute_watts: Fixed[Amount]
    idle_watts: Fixed[Amount]
    resources: Fixed[dict[str, Amount]] | None = None
    battery_joules: Fixed[Annotated[float, Field(gt=0)]] | None = None
    charge_watts: Fixed[Amount] | None = None


class Link(Strict):
    """One kind of link; ``sigma`` of up and down is drawn once, so a fast client is fast both ways."""

    name: str = Field(min_length=1)
    share: Fixed[Share]
    up_bps: Figure[Bps]
    down_bps: Figure[Bps]
    rtt_seconds: Figure[Amount]
    radio_joules_per_byte: Fixed[Amount]


class Mix(Strict):
    """A fleet before it is drawn.

    Attributes:
        about: what the fleet stands for.
        memory_share: the share of its RAM a client declares for this job; a class may state its own.
        correlation: of `QUANTITIES`: one number 0 to 1 for every pair, or the 4 x 4 matrix.
        classes: from the slowest to the fastest in fp32.
        links: from the slowest to the fastest downlink; drawn over the whole fleet.
    """

    about: str
    memory_share: Figure[Share]
    correlation: Fixed[float | list[list[float]]]
    classes: list[DeviceClass] = Field(min_length=1)
    links: list[Link] = Field(min_length=1)


def load_mix(path: Path) -> Mix:
    """The mix in a YAML file. Raises ConfigError with the place of the first mistake."""
    try:
        mix = Mix.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"The fleet {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The fleet {path} is not YAML: {' '.join(str(error).split())}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the whole file"
        raise ConfigError(f"The fleet {path} is wrong at {place}: {first['msg']}.") from error
    _check(mix, path)
    return mix


def _check(mix: Mix, path: Path) -> None:
    shares = {"classes": [c.share.value for c in mix.classes], "links": [k.share.value for k in mix.links]}
    shares |= {f"the RAM of {c.name}": list(c.ram.values.values()) for c in mix.classes}
    for what, values in shares.items():
        if abs(sum(values) - 1) > 1e-6:
            raise ConfigError(f"The fleet {path}: the shares of {what} add up to {sum(values):g}; make it 1.")
    speeds = {
        "classes": [(c.flops_per_s.fp32.value, c.name) for c in mix.classes],
        "links": [(k.down_bps.value, k.name) for k in mix.links],
    }
    for what, rates in speeds.items():
        names = [name for _, name in rates]
        if len(set(names)) < len(names):
            raise ConfigError(f"The fleet {path}: two {what} have one name among {', '.join(names)}.")
        in_order = [name for _, name in sorted(rates, key=lambda rate: rate[0])]
        if names != in_order:
            raise ConfigError(f"The fleet {path}: list the {what} from slow to fast: {', '.join(in_order)}.")


def mixing(correlation: Correlation) -> Floats:
    """The 4 x 4 factor that gives independent normals the correlation of `QUANTITIES`.

    Raises:
        ConfigError: not a number 0 to 1 and not a correlation matrix.
    """
    if isinstance(correlation, int | float):
        if not 0 <= correlation <= 1:
            raise ConfigError(f"correlation is a number from 0 to 1 or a matrix, found {correlation}.")
        matrix = np.where(np.eye(len(QUANTITIES)), 1.0, float(correlation))
    elif _is_unit_symmetric(correlation):
        matrix = np.asarray(correlation, float)
    else:
        raise ConfigError(
            f"correlation is a number or a symmetric 4 x 4 matrix with ones on its diagonal, over "
            f"{', '.join(QUANTITIES)}; found {correlation}."
        )
    # The eigenvectors serve singular matrices too (correlation 1), where Cholesky's factor does not exist.
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -1e-8:
        raise ConfigError(
            f"No quantities have the correlation {correlation}: its least eigenvalue is {values[0]:.3g}, "
            "below 0; bring its entries closer together or to 0."
        )
    factor: Floats = vectors * np.sqrt(np.clip(values, 0, None))
    return factor


def _is_unit_symmetric(matrix: Sequence[Sequence[float]]) -> bool:
    if [len(row) for row in matrix] != [len(QUANTITIES)] * len(QUANTITIES):
        return False
    values = np.asarray(matrix, float)
    # A NaN is close to nothing, itself included.
    return np.allclose(values, values.T) and np.allclose(np.diag(values), 1)


def draw(
    mix: Mix,
    num_clients: int,
    seed: int,
    memory_share: float | None = None,
    correlation: Correlation | None = None,
) -> Columns:
    """The columns of a fleet, [num_clients] each; client i's do not depend on ``num_clients``.

    Args:
        mix: device classes and links.
        num_clients: how many clients.
        seed: of the run.
        memory_share: takes the place of every share of the mix, without spread.
        correlation: takes the place of the mix's.
    """
    factor = mixing(mix.correlation.value if correlation is None else correlation)
    # Clients are rows, so the stream reaches client i after the same number of draws in any fleet.
    noise = generator(seed, "fleet").standard_normal((num_clients, 6))
    latent = np.concatenate([noise[:, :4] @ factor.T, noise[:, 4:]], axis=1)
    which, place = _pick(latent[:, COMPUTE], [c.share.value for c in mix.classes])
    # Inside a class memory follows the place in the class as it followed compute over the fleet.
    pull = float(factor[MEMORY] @ factor[COMPUTE])
    latent[:, MEMORY] += pull * (place - latent[:, COMPUTE])
    columns = {
        "device_class": np.array([c.name for c in mix.classes])[which],
        **_device_columns(mix, which, place, latent, memory_share),
        **_link_columns(mix, latent),
        "data_size_rank": ndtr(latent[:, DATA_SIZE]),
    }
    return {name: _rounded(column) for name, column in columns.items()}


def _rounded(column: NDArray[Any]) -> NDArray[Any]:
    """Six significant digits of floats: nobody declares more, and a saved CSV is half as long."""
    if column.dtype != np.float64:
        return column
    # Whole powers of ten up to 1e22 are exact, so the result is the float nearest to its six digits.
    # A device on mains has an infinite battery.
    counted = (column > 0) & np.isfinite(column)
    digits = np.floor(np.log10(np.where(counted, column, 1.0))) - 5
    up, down = 10.0 ** np.maximum(-digits, 0), 10.0 ** np.maximum(digits, 0)
    rounded: Floats = np.round(column * up / down) * down / up
    return rounded


def _pick(latent: Floats, shares: Sequence[float]) -> tuple[NDArray[np.int64], Floats]:
    """Which share of the distribution a normal falls into, and the normal of its place inside it."""
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    quantile = ndtr(latent)
    which = np.clip(np.searchsorted(edges, quantile, side="right") - 1, 0, len(shares) - 1)
    inside = (quantile - edges[which]) / np.asarray(shares)[which]
    # A quantile that rounds to 0 or 1 would be an infinite normal.
    return which, ndtri(np.clip(inside, 1e-12, 1 - 1e-12))


def _spread(figures: Sequence[Figure[Any]], which: NDArray[np.int64], normal: Floats) -> Floats:
    median, sigma = (np.array([[f.value, f.sigma] for f in figures], float)).T
    spread: Floats = median[which] * np.exp(sigma[which] * normal)
    return spread


def _device_columns(
    mix: Mix, which: NDArray[np.int64], place: Floats, latent: Floats, memory_share: float | None
) -> Columns:
    classes = mix.classes
    online = [c.availability for c in classes]
    share, sigma = np.array([[f.value, f.sigma] for f in online], float).T
    odds = logit(share)[which] + sigma[which] * latent[:, ONLINE]
    columns: Columns = {
        "memory_bytes": _memory_bytes(mix, which, latent[:, MEMORY], memory_share),
        "flops_per_s_fp32": _spread([c.flops_per_s.fp32 for c in classes], which, place),
        "flops_per_s_bf16": _spread([c.flops_per_s.bf16 for c in classes], which, place),
        "memory_bytes_per_s": _spread([c.memory_bytes_per_s for c in classes], which, place),
        "availability": expit(odds),
        "attention": np.array([c.attention for c in classes])[which],
        "resources": np.array([_as_json(c) for c in classes])[which],
    }
    columns["storage_bytes"] = np.array([c.storage_bytes.value for c in classes])[which]
    columns["compute_watts"] = np.array([c.compute_watts.value for c in classes])[which]
    columns["idle_watts"] = np.array([c.idle_watts.value for c in classes])[which]
    for name, absent in (("battery_joules", np.inf), ("charge_watts", 0.0)):
        given = [getattr(c, name) for c in classes]
        columns[name] = np.array([absent if figure is None else figure.value for figure in given])[which]
    return columns


def _as_json(device_class: DeviceClass) -> str:
    return json.dumps(device_class.resources.value if device_class.resources else {}, sort_keys=True)


def _memory_bytes(
    mix: Mix, which: NDArray[np.int64], normal: Floats, memory_share: float | None
) -> NDArray[np.int64]:
    if memory_share is not None and not 0 < memory_share <= 1:
        raise ConfigError(f"memory_share is above 0 and at most 1, found {memory_share}.")
    ram = np.empty(len(which))
    for index, device_class in enumerate(mix.classes):
        of_class = which == index
        sizes = dict(sorted(device_class.ram.values.items()))
        option, _ = _pick(normal[of_class], list(sizes.values()))
        ram[of_class] = np.array(list(sizes), float)[option]
    if memory_share is not None:
        return (ram * memory_share).astype(np.int64)
    shares = [c.memory_share or mix.memory_share for c in mix.classes]
    return np.minimum(ram, ram * _spread(shares, which, normal)).astype(np.int64)


def _link_columns(mix: Mix, latent: Floats) -> Columns:
    which, place = _pick(latent[:, LINKS], [link.share.value for link in mix.links])
    return {
        "up_bps": _spread([link.up_bps for link in mix.links], which, place),
        "down_bps": _spread([link.down_bps for link in mix.links], which, place),
        "rtt_seconds": _spread([link.rtt_seconds for link in mix.links], which, latent[:, RTT]),
        "radio_joules_per_byte": np.array([k.radio_joules_per_byte.value for k in mix.links])[which],
    }
