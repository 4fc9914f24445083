"""What a run has come to: all that the next round depends on, and so what a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedray.adapter import Adapter, GlobalState
from fedray.battery import Charges
from fedray.holdings import Holdings
from fedray.observable import statistics_from_json
from fedray.policy import State
from fedray.record import ClientRecord, EvaluationRecord, RoundRecord
from fedray.training.job import ClientState
from fedray.underway import UnderWay


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What audits of one piece of work came to, for whoever does it.

    Attributes:
        peak_bytes: the most that any audited client held.
        at_least: that client was ended for passing its memory, and would have held more.
    """

    peak_bytes: int
    at_least: bool = False

    def holds_for(self, memory_bytes: int) -> bool:
        """Whether it says of a client with this memory if the work fits."""
        return not self.at_least or self.peak_bytes > memory_bytes


@dataclass(slots=True, kw_only=True)
class Progress:
    """The one thing a run changes, round by round.

    Attributes:
        charges: how full batteries were left.
        audited: the verdict on each distinct piece of work that ran alone under the counter.
        client_states: what each client keeps between rounds, by client; whoever keeps nothing is not there.
        under_way: who is at work between rounds, where these overlap.
    """

    state: GlobalState
    holdings: Holdings
    charges: Charges = field(default_factory=Charges)
    policy_state: State = field(default_factory=dict)
    audited: dict[str, Verdict] = field(default_factory=dict)
    client_states: dict[int, ClientState] = field(default_factory=dict)
    under_way: UnderWay = field(default_factory=UnderWay)
    rounds: list[RoundRecord] = field(default_factory=list)
    clients: list[ClientRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)

    @property
    def finished_rounds(self) -> int:
        """How many; the next is one more."""
        return len(self.rounds)

    @property
    def elapsed_seconds(self) -> float:
        """Virtual, from the run's start to the end of the last finished round."""
        return float(sum(record.virtual_seconds for record in self.rounds))

    def remember(self, states: Mapping[int, ClientState]) -> None:
        """What these clients keep from now on; the others keep what they had."""
        self.client_states |= states
        for client, state in states.items():
            if not state:
                del self.client_states[client]

    def history(self) -> list[Mapping[str, object]]:
        """Client records as a policy sees them: columns of ``clients.parquet``."""
        return history_of(self.clients)


def history_of(records: Sequence[ClientRecord]) -> list[Mapping[str, object]]:
    """These client records as a policy sees them, its statistics as arrays."""
    return [
        {name: getattr(record, name) for name in ClientRecord.__slots__ if name != "attack"}
        | {"statistics": statistics_from_json(record.statistics)}
        for record in records
    ]


def begun(num_clients: int, adapter: Adapter, *, preinstalled: bool) -> Progress:
    """A run before its first round: an adapter, and devices that hold the model already or nothing."""
    return Progress(
        state=GlobalState(adapter=adapter), holdings=Holdings(num_clients, preinstalled=preinstalled)
    )
