"""What an actor reserves, and whether a cluster has as much."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedray.units import show_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What Ray sets aside for one actor: bookkeeping on Ray's side, not a limit."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def amounts(self) -> dict[str, float]:
        """The same under the names that Ray's own tables use."""
        plain = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": float(self.memory_bytes or 0)}
        return {name: amount for name, amount in {**plain, **self.resources}.items() if amount}


def lacking(totals: Mapping[str, float], reservations: Sequence[Reservation]) -> frozenset[str]:
    """What these reservations together ask too much of, by Ray's names; empty where all have room."""
    asked: dict[str, float] = defaultdict(float)
    for reservation in reservations:
        for name, amount in reservation.amounts().items():
            asked[name] += amount
    return frozenset(name for name, amount in asked.items() if amount > totals.get(name, 0))


def amounts_in_words(resources: Mapping[str, float]) -> str:
    """Ray's table of resources for a sentence, without what belongs to Ray itself."""
    known = {"CPU": "CPUs", "GPU": "GPUs"}
    words = []
    for name, amount in sorted(resources.items()):
        if name == "memory":
            words.append(f"{show_bytes(amount)} of memory")
        elif not name.startswith(("node:", "object_store_memory")):
            words.append(f"{amount:g} {known.get(name, name)}")
    return ", ".join(words) or "nothing"
