"""Bytes, bits and seconds as people write and read them; inside fedray every number is plain SI."""

import re

from fedray.errors import ConfigError

_BYTES = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _BYTES[_prefix + "b"] = 1000**_power
    _BYTES[_prefix + "ib"] = 1024**_power
_BITS_PER_S = {"": 1.0, "bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}
_RATES = {"": 1.0, "flop/s": 1.0, "mflop/s": 1e6, "gflop/s": 1e9, "tflop/s": 1e12}
_BYTE_RATES = {"": 1.0, "b/s": 1.0, "kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9, "tb/s": 1e12}
_NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z/]*)\s*")


def _parse(text: str | float, known: dict[str, float], example: str) -> float:
    match = _NUMBER.fullmatch(str(text))
    if match is None or match[2].lower() not in known:
        units = ", ".join(unit for unit in known if unit)
        raise ConfigError(
            f"{text!r} is not a quantity; write a number with one of {units}, such as {example!r}."
        )
    try:
        return float(match[1]) * known[match[2].lower()]
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a quantity; write it like {example!r}.") from error


def parse_bytes(text: str | float) -> int:
    """``"4 GiB"`` to 4294967296. Raises ConfigError."""
    return int(_parse(text, {k: float(v) for k, v in _BYTES.items()}, "4 GiB"))


def parse_bps(text: str | float) -> float:
    """``"20 Mbps"`` (bits) to 2e7. Raises ConfigError."""
    return _parse(text, _BITS_PER_S, "20 Mbps")


def parse_flops_per_s(text: str | float) -> float:
    """``"30 GFLOP/s"`` to 3e10. Raises ConfigError."""
    return _parse(text, _RATES, "30 GFLOP/s")


def parse_bytes_per_s(text: str | float) -> float:
    """``"12 GB/s"`` (bytes) to 1.2e10. Raises ConfigError."""
    return _parse(text, _BYTE_RATES, "12 GB/s")


def show_bytes(count: float) -> str:
    """4294967296 to ``"4.0 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """93.4 to ``"1 min 33 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
