"""Who is compared on what: every policy, on every setting, with every seed, each a run in its own folder."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedray.errors import ConfigError

# A system without per-client work, and the same work for all: what any policy has to beat.
BESIDE = ("drop_weak", "everybody_smallest")
# No federation at all, and all rows in one place: see `fedray.comparison.yardsticks`.
Yardstick = Literal["local_only", "centralised"]
YARDSTICKS: tuple[Yardstick, ...] = ("local_only", "centralised")
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One policy with its options, and what was tuned for it alone.

    Attributes:
        beside: it was not asked for, and is compared all the same.
        yardstick: no policy but what policies are measured against; its runs name one that would do.
    """

    name: str
    options: Settings
    beside: bool = False
    yardstick: Yardstick | None = None

    @property
    def label(self) -> str:
        """Its short name, with its options: ``hetlora(capacity=up_bps)``."""
        if self.yardstick is not None:
            return self.yardstick
        options = ", ".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return Path(self.name).stem + (f"({options})" if options else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run: an entrant under a setting with a seed; ``tuned`` are keys with the values to try or keep."""

    entrant: Entrant
    setting: Settings
    seed: int
    tuned: Settings

    def __str__(self) -> str:
        """``hetlora, data.partitioner.alpha=0.1, seed 3``."""
        parts = [self.entrant.label, said(self.setting), said(self.tuned), f"seed {self.seed}"]
        return ", ".join(part for part in parts if part)

    @property
    def overrides(self) -> list[str]:
        """What makes the common configuration this run's; see `fedray.config.load_config`."""
        policy = {"name": self.entrant.name, "options": dict(self.entrant.options)}
        values = {**self.setting, **self.tuned, "policy": policy, "seed": self.seed}
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def place(self, out: Path) -> Path:
        """Its folder within the comparison's."""
        parts = [_slug(self.entrant.label), *(_slug(said(s)) for s in (self.setting, self.tuned) if s)]
        return out.joinpath("runs", *parts, f"seed_{self.seed}")


def entrants_of(policies: Sequence[str | Settings]) -> list[Entrant]:
    """The policies that were asked for, in order, and those that always stand beside them.

    Args:
        policies: names or paths, or mappings with ``name`` and ``options``.

    Raises:
        ConfigError: there is none, one is written wrongly, or two are the same.
    """
    if not policies:
        raise ConfigError("A comparison needs a policy at least; name one, such as hetlora.")
    found = [_entrant(policy) for policy in policies]
    labels = [_slug(entrant.label) for entrant in found]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"The policy {label!r} is given {labels.count(label)} times; give it once.")
    names = {entrant.name for entrant in found if not entrant.options}
    found += [Entrant(name=n, options={}, beside=True) for n in BESIDE if n not in names]
    return found + [
        Entrant(name="largest_that_fits", options={}, beside=True, yardstick=kind) for kind in YARDSTICKS
    ]


def settings_of(grid: Mapping[str, Sequence[Any]], what: str) -> list[Settings]:
    """Every combination of a grid's values; one empty setting of an empty grid.

    Args:
        grid: dotted keys of the configuration, each with the values to try.
        what: ``grid`` or ``tune``, for messages.

    Raises:
        ConfigError: a key that the comparison itself sets, or one without values.
    """
    for key, values in grid.items():
        if key.split(".")[0] in ("policy", "seed"):
            raise ConfigError(f"{what}: {key} is set by the comparison; use policies= or seeds= for it.")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"{what}: {key} needs a list of values to try, found {values!r}.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """5 to seeds 0 to 4; a list as it stands. Raises ConfigError for none, negative or repeated ones."""
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ConfigError(f"seeds is how many, 1 or more, or a list of different seeds; found {seeds!r}.")
    return found


def said(setting: Settings) -> str:
    """``{"data.partitioner.alpha": 0.1}`` to ``data.partitioner.alpha=0.1``."""
    return ", ".join(f"{key}={value}" for key, value in setting.items())


def _entrant(policy: str | Settings) -> Entrant:
    if isinstance(policy, str) and policy:
        return Entrant(name=policy, options={})
    if isinstance(policy, Mapping) and set(policy) <= {"name", "options"} and policy.get("name"):
        return Entrant(name=str(policy["name"]), options=dict(policy.get("options") or {}))
    raise ConfigError(f"A policy is a name, a path, or a mapping with name and options; found {policy!r}.")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", text).strip("_")
