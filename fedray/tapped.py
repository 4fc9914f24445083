"""A runtime that taps listen to: they are shown copies of what the server receives and sends."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

from fedray.rounds import Runtime
from fedray.runtime.carrier import Done, Order, TrainPack
from fedray.runtime.split import SplitDone, SplitEvaluation
from fedray.server.lockstep import SplitRound
from fedray.training.boundary import PackMessages
from fedray.training.evaluate import Outputs
from fedray.training.job import Job, Update
from fedray.training.link import as_received
from fedray.training.tap import Crossing, Heard, Passing, Tap


class TappedRuntime:
    """Hands orders on, and shows taps the answers of those that train."""

    def __init__(self, runtime: Runtime, taps: Sequence[Tap]) -> None:
        """The runtime is closed through this one."""
        self._runtime, self._taps = runtime, tuple(taps)

    def carry_out(self, orders: Sequence[Order]) -> Iterator[Done]:
        """One answer per order, in the order given."""
        for order, done in zip(orders, self._runtime.carry_out(orders), strict=True):
            if isinstance(order, TrainPack):
                assert isinstance(done.answer, list)
                for job, update in zip(order.jobs, done.answer, strict=True):
                    assert isinstance(update, Update)
                    self._show(job, as_received(job, update))
            yield done

    def train_split(self, split: SplitRound, heard: Heard | None = None) -> SplitDone:
        """A round under a cut: every message as it passes, then the updates."""
        jobs = {job.client_id: job for pack in split.packs.values() for job in pack}

        def hear(step: int, passing: Passing, messages: PackMessages) -> None:
            if heard is not None:
                heard(step, passing, messages)
            # Actors answer pack by pack as they carry them; what is heard first is no matter of who carries.
            for place in sorted(messages):
                for client, message in messages[place].items():
                    for tap in self._taps:
                        crossing = Crossing(step=step, passing=passing, message=message)
                        tap.crossed(deepcopy(jobs[client]), deepcopy(crossing))

        done = self._runtime.train_split(split, hear)
        for updates in done.updates.values():
            for update in updates:
                self._show(jobs[update.client_id], update)
        return done

    def evaluate_split(self, evaluation: SplitEvaluation) -> Iterator[Outputs]:
        """Nothing of an evaluation is shown: its rows are nobody's."""
        return self._runtime.evaluate_split(evaluation)

    def close(self) -> None:
        """Close the runtime itself."""
        self._runtime.close()

    def _show(self, job: Job, update: Update) -> None:
        for tap in self._taps:
            tap.update(deepcopy(job), deepcopy(update))
