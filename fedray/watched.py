"""A runtime that says how far a round is: how many clients or rows of its present orders are done."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, assert_never

from fedray.rounds import Runtime
from fedray.runtime.carrier import AuditJob, CastShadows, Done, EvaluateRows, LookInto, Order, TrainPack
from fedray.runtime.split import SplitDone, SplitEvaluation
from fedray.server.lockstep import SplitRound
from fedray.training.evaluate import Outputs
from fedray.training.tap import Heard

Doing = Literal["audits", "training", "evaluation", "attacks"]
# Round, what is being done, how many are done, of how many: clients, but rows in an evaluation.
Watch = Callable[[int, Doing, int, int], None]


class WatchedRuntime:
    """Hands orders on, and tells ``watch`` before the first answer and after each one."""

    def __init__(self, runtime: Runtime, round_number: int, watch: Watch) -> None:
        """For one round; the runtime is closed by whoever opened it."""
        self._runtime, self._round, self._watch = runtime, round_number, watch

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""
        parts = [_part(order) for order in orders]
        done, total = 0, sum(size for _, size in parts)
        if parts:
            self._watch(self._round, parts[0][0], done, total)
        for (doing, size), answer in zip(parts, self._runtime.carry_out(orders), strict=True):
            done += size
            self._watch(self._round, doing, done, total)
            yield answer

    def train_split(self, split: SplitRound, heard: Heard | None = None) -> SplitDone:
        """A round under a cut: told before and after, since all its packs step together."""
        total = sum(len(jobs) for jobs in split.packs.values())
        self._watch(self._round, "training", 0, total)
        done = self._runtime.train_split(split, heard)
        self._watch(self._round, "training", total, total)
        return done

    def evaluate_split(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """Of each chunk, told of before the first and after each one."""
        done, total = 0, sum(len(rows) for rows in evaluation.chunks)
        self._watch(self._round, "evaluation", done, total)
        for rows, outputs in zip(evaluation.chunks, self._runtime.evaluate_split(evaluation), strict=True):
            done += len(rows)
            self._watch(self._round, "evaluation", done, total)
            yield outputs

    def close(self) -> None:
        """Close the runtime itself."""
        self._runtime.close()


def _part(order: Order) -> tuple[Doing, int]:
    match order:
        case AuditJob():
            return "audits", 1
        case TrainPack(jobs=jobs):
            return "training", len(jobs)
        case EvaluateRows(rows=rows):
            return "evaluation", len(rows)
        case LookInto():
            return "attacks", 1
        case CastShadows(jobs=jobs):
            return "attacks", len(jobs)
        case _:
            assert_never(order)
