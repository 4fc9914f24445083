"""A trained run replayed: its losses and accuracies, as long as the simulation decides what it decided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedray.assignment import Assignment
from fedray.errors import SimulationError
from fedray.record import ClientRecord, EvaluationRecord, RoundRecord
from fedray.report.reading import read_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run's records: client rows by round and client, round rows by round."""

    folder: Path
    clients: dict[int, dict[int, ClientRecord]]
    rounds: dict[int, RoundRecord]
    evaluations: tuple[EvaluationRecord, ...]

    def replayed(self, number: int, clients: Sequence[ClientRecord]) -> list[ClientRecord]:
        """The simulated rows of a round with what training showed.

        Raises:
            SimulationError: the run has no such round, asked others, or gave or got something else.
        """
        theirs = self.clients.get(number)
        if theirs is None:
            raise SimulationError(
                f"Round {number} is not in {self.folder}, which has {len(self.rounds)}; replay at most so "
                "many (rounds.num_rounds)."
            )
        ours = {record.client_id for record in clients}
        if ours != theirs.keys():
            odd = min(ours ^ theirs.keys())
            where = "here and not there" if odd in ours else "there and not here"
            raise self._decided_otherwise(number, f"client {odd} is given something {where}")
        return [self._with_training(record, theirs[record.client_id]) for record in clients]

    def _with_training(self, ours: ClientRecord, theirs: ClientRecord) -> ClientRecord:
        here, there = ours.assignment, theirs.assignment
        if here != there:
            words = [str(Assignment.from_json(text)) for text in (here, there)]
            difference = f"client {ours.client_id} is given ({words[0]}) here and ({words[1]}) there"
            raise self._decided_otherwise(ours.round, difference)
        if ours.outcome != theirs.outcome:
            difference = f"client {ours.client_id} is {ours.outcome} here and {theirs.outcome} there"
            raise self._decided_otherwise(ours.round, difference)
        return replace(ours, loss=theirs.loss, lost_share=theirs.lost_share, statistics=theirs.statistics)

    def _decided_otherwise(self, number: int, difference: str) -> SimulationError:
        return SimulationError(
            f"The replay of {self.folder} parts from it in round {number}: {difference}, so something else "
            "would have been learnt; train with fedray run, or change nothing that a decision depends on."
        )

    def scored(self, record: RoundRecord) -> RoundRecord:
        """A simulated round with the run's accuracy and loss after it."""
        theirs = self.rounds[record.round]
        return replace(
            record,
            accuracy=theirs.accuracy,
            loss=theirs.loss,
            drift=theirs.drift,
            disagreement=theirs.disagreement,
        )

    def evaluations_until(self, number: int) -> tuple[EvaluationRecord, ...]:
        """Those after rounds up to this one."""
        return tuple(record for record in self.evaluations if record.round <= number)


def read_recorded(folder: Path) -> Recorded:
    """The records of a trained run. Raises ConfigError for a folder that holds none."""
    run = read_run(folder)
    clients: dict[int, dict[int, ClientRecord]] = {record.round: {} for record in run.rounds}
    for row in run.clients:
        clients[row.round][row.client_id] = row
    return Recorded(
        folder=folder,
        clients=clients,
        rounds={record.round: record for record in run.rounds},
        evaluations=tuple(run.evaluations),
    )
