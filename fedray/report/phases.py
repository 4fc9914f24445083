"""Where virtual time went: what clients did in a round, and what rounds waited for."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fedray.record import ClientRecord, RoundRecord
from fedray.report.reading import Run

# In the order in which a client does them; with a cut the middle three take turns.
PHASES = ("receiving", "computing", "over the cut", "waiting for the server", "sending")
LINKS = ("receiving", "over the cut", "sending")
# From here on most of a round is spent on it.
MOST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Shares of virtual time by phase.

    Attributes:
        of_rounds: of the rounds' own time: of each round its last client's, whose end the round waited for.
        of_clients: of all that clients were asked for, from a round's start to its end.
        idle: the share of that in which a client was done, or gone, and the round was not over.
    """

    of_rounds: Mapping[str, float]
    of_clients: Mapping[str, float]
    idle: float

    @property
    def on_links(self) -> float:
        """Of the rounds' time, what went by while bytes moved."""
        return sum(self.of_rounds[phase] for phase in LINKS)


def phases_of(record: ClientRecord) -> dict[str, float]:
    """Seconds of one client in one round, in the order of `PHASES`."""
    known = record.receive_seconds + record.compute_seconds + record.waiting_seconds + record.send_seconds
    # Rounding leaves a breath of a client without a cut.
    crossing = max(record.virtual_seconds - known, 0.0) if record.cut is not None else 0.0
    seconds = (
        record.receive_seconds,
        record.compute_seconds,
        crossing,
        record.waiting_seconds,
        record.send_seconds,
    )
    return dict(zip(PHASES, seconds, strict=True))


def tells_phases(run: Run) -> bool:
    """Whether its records know them: runs of before these columns do not."""
    return any(record.receive_seconds for record in run.clients)


def overlaps(run: Run) -> bool:
    """Whether its rounds overlap: a client's trip then lies in no one round."""
    return any(record.staleness for record in run.clients)


def shares_of(run: Run) -> Shares:
    """Of a whole run whose rounds do not overlap."""
    longest, everybody = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    present = 0.0
    for asked in asked_by_round(run).values():
        end = max(record.virtual_seconds for record in asked)
        present += end * len(asked)
        last = max(asked, key=lambda record: (record.virtual_seconds, -record.client_id))
        for phase, seconds in phases_of(last).items():
            longest[phase] += seconds
        for record in asked:
            for phase, seconds in phases_of(record).items():
                everybody[phase] += seconds
    of_rounds, of_clients = _over(longest, sum(longest.values())), _over(everybody, present)
    return Shares(of_rounds=of_rounds, of_clients=of_clients, idle=max(1.0 - sum(of_clients.values()), 0.0))


def asked_by_round(run: Run) -> dict[int, list[ClientRecord]]:
    """The clients of each round that asked somebody, by id; rounds in order."""
    found: dict[int, list[ClientRecord]] = defaultdict(list)
    for record in sorted(run.clients, key=lambda record: (record.round, record.client_id)):
        found[record.round].append(record)
    return dict(found)


def usual_round(run: Run) -> RoundRecord:
    """The round of median length among those that asked somebody, the first of equals."""
    asked = {record.round for record in run.clients}
    held = sorted((r for r in run.rounds if r.round in asked), key=lambda r: (r.virtual_seconds, r.round))
    return held[(len(held) - 1) // 2]


def slowest_over_median(run: Run) -> float:
    """How much longer than its median client a round's last one took, the median over rounds."""
    found = []
    for asked in asked_by_round(run).values():
        seconds = [record.virtual_seconds for record in asked]
        if median(seconds) > 0:
            found.append(max(seconds) / median(seconds))
    return median(found) if found else 1.0


def _over(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    return {phase: value / total if total else 0.0 for phase, value in seconds.items()}


def in_order(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """The slowest first."""
    return sorted(records, key=lambda record: (-record.virtual_seconds, record.client_id))
