"""The global state on rows that nobody trains on: on whole models, or by sweeps over the server's shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fedray.adapter import Adapter, GlobalState
from fedray.aggregation.rule import one_adapter
from fedray.assignment import Assignment
from fedray.cost import Floats
from fedray.parts import evaluated_span
from fedray.record import EvaluationRecord
from fedray.rounds import Runtime
from fedray.runtime.carrier import EvaluateRows
from fedray.runtime.split import SplitEvaluation
from fedray.scene import Scene
from fedray.training.data import Rows
from fedray.training.evaluate import Outputs, evaluation_chunks, in_order
from fedray.training.own_weights import as_wide

# Splits whose accuracy is the run's, the first that has rows.
HEADLINE = ("test", "unseen", "validation")


def evaluate(scene: Scene, state: GlobalState, round_number: int, runtime: Runtime) -> list[EvaluationRecord]:
    """The global state on validation, test and unseen rows, client by client where rows belong to one."""
    adapter = one_adapter(state)
    return _scored(
        scene, round_number, list(_groups(scene)), lambda chunks: _answers(scene, adapter, chunks, runtime)
    )


def evaluate_part(
    scene: Scene, state: GlobalState, model: Assignment, runtime: Runtime
) -> tuple[float | None, float | None]:
    """Accuracy and loss of what a client holds of the state, on the rows that `headline` is of.

    Ranks limit what is trained and not what is run, so all of a site's are in; None without any rows.

    Args:
        scene: of the run.
        state: the global one.
        model: without a cut; its blocks, width, bits and zeros are the part, its head the one it ends in.
        runtime: where rows are evaluated.
    """
    adapter = as_wide(scene.anatomy, model.width, one_adapter(state))
    groups = list(_groups(scene))
    first = next((split for split in HEADLINE if any(group[0] == split for group in groups)), None)

    def answers(chunks: Sequence[Rows]) -> list[Outputs]:
        orders = [EvaluateRows(adapter=adapter, rows=chunk, model=model) for chunk in chunks]
        return [done.answer for done in runtime.carry_out(orders)]  # type: ignore[misc]

    return headline(_scored(scene, 0, [group for group in groups if group[0] == first], answers))


def _scored(
    scene: Scene,
    round_number: int,
    groups: Sequence[tuple[str, int, Rows]],
    answers: Callable[[Sequence[Rows]], list[Outputs]],
) -> list[EvaluationRecord]:
    """A record of each group, from what ``answers`` says of chunks of all their rows."""
    rows = np.concatenate([own for _, _, own in groups]) if groups else np.zeros(0, np.int64)
    chunks = evaluation_chunks(scene.encoded.lengths, rows)
    outputs = dict(zip(rows.tolist(), in_order(rows, chunks, answers(chunks)), strict=True))
    records = []
    for split, client, own in groups:
        found = [outputs[row] for row in own.tolist()]
        read = own if split != "backdoor" or scene.poisoning is None else scene.poisoning.originals
        metrics = scene.task.metrics(found, [scene.rows[row] for row in read.tolist()])
        records.append(scored(scene, round_number, (split, client, own), metrics))
    return records


def scored(
    scene: Scene, round_number: int, group: tuple[str, int, Rows], metrics: Mapping[str, float]
) -> EvaluationRecord:
    """The record of what was measured on one group of rows: its split, its client or -1, and the rows."""
    split, client, rows = group
    seen = split != "unseen" and client >= 0
    return EvaluationRecord(
        round=round_number,
        split=split,  # type: ignore[arg-type]
        client_id=client,
        device_class=str(scene.fleet.device_class(np.array([client]))[0]) if seen else "",
        num_rows=len(rows),
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
    )


def losses_on(scene: Scene, state: GlobalState, rows: Rows, runtime: Runtime) -> Floats:
    """The loss of each of these rows of the pool under the global state, [rows]."""
    chunks = evaluation_chunks(scene.encoded.lengths, rows)
    answers = in_order(rows, chunks, _answers(scene, one_adapter(state), chunks, runtime))
    return np.array([float(answer["loss"]) for answer in answers])


def held_out(scene: Scene) -> Rows:
    """All rows that are evaluated on and nobody trains on, a backdoor's aside."""
    own = [rows for split, _, rows in _groups(scene) if split != "backdoor"]
    return np.concatenate(own) if own else np.zeros(0, np.int64)


def headline(evaluations: Sequence[EvaluationRecord]) -> tuple[float | None, float | None]:
    """Accuracy and loss over all rows of the first split there is: test, then unseen, then validation."""
    for split in HEADLINE:
        found = [record for record in evaluations if record.split == split]
        if total := sum(record.num_rows for record in found):
            return tuple(  # type: ignore[return-value]
                sum(value * record.num_rows for record, value in zip(found, values, strict=True)) / total
                for values in ([r.accuracy for r in found], [r.loss for r in found])
            )
    return None, None


def _answers(scene: Scene, adapter: Adapter, chunks: Sequence[Rows], runtime: Runtime) -> list[Outputs]:
    span = evaluated_span(scene.config, scene.anatomy.num_blocks)
    if span is not None:
        asked = SplitEvaluation(adapter=adapter, chunks=chunks, first=span[0], end=span[1])
        return list(runtime.evaluate_split(asked))
    orders = [EvaluateRows(adapter=adapter, rows=chunk) for chunk in chunks]
    return [done.answer for done in runtime.carry_out(orders)]  # type: ignore[misc]


def _groups(scene: Scene) -> Iterator[tuple[str, int, Rows]]:
    parts = scene.partitions
    for split, of_clients, whole in (
        ("test", parts.test_of, parts.test),
        ("validation", parts.validation_of, parts.validation),
        ("unseen", parts.unseen, np.zeros(0, np.int64)),
    ):
        owned = [(split, client, own) for client, own in enumerate(of_clients) if len(own)]
        yield from owned
        if not owned and len(whole):
            yield split, -1, whole
    if scene.poisoning is not None and len(scene.poisoning.triggered):
        yield "backdoor", -1, scene.poisoning.triggered
