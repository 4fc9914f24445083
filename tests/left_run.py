"""Folders as a run leaves them: 24 clients of four device classes, made up but near what was traced."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq

from fedray.assignment import Assignment, lora_on_top
from fedray.record import ClientRecord, EvaluationRecord, RoundRecord, table

MIB = 2**20
# name: declared memory of its clients (MiB), trained blocks, rank, recompute, seconds of a trip
CLASSES = {
    "phone-low": (112, 2, 4, False, 95.0),
    "raspberry-pi-5": (128, 2, 8, True, 210.0),
    "jetson-orin": (176, 6, 8, True, 38.0),
    "laptop": (240, 6, 16, False, 14.0),
}
# What MiniLM holds at most with these (MiB), near what was traced.
PEAKS = {2: 98, 6: 171}
CONFIG = """\
model:
  name: minilm
policy:
  name: largest_that_fits
fleet:
  source: edge
menu:
  ranks: [4, 8, 16]
  depths: [2, all]
seed: 7
"""


def assignment_of(device_class, rank=None):
    _, depth, usual, recompute, _ = CLASSES[device_class]
    adapter = lora_on_top(6, depth, rank or usual, targets=("query", "value"))
    return Assignment(blocks=tuple(range(6)), adapter=adapter, recompute=recompute, batch_size=8)


def client_record(number, client_id, outcome="ok", **changes):
    device_class = list(CLASSES)[client_id % 4]
    memory, depth, _, _, seconds = CLASSES[device_class]
    assignment = assignment_of(device_class, 4 if device_class == "laptop" and number % 3 == 0 else None)
    predicted = int((PEAKS[depth] + 0.4 * assignment.max_rank + client_id % 5) * MIB)
    audited = client_id % 3 == number % 3
    sent = 4 * assignment.sum_of_ranks * 4 * 384
    record = ClientRecord(
        round=number, client_id=client_id, device_class=device_class, assignment=assignment.to_json(),
        memory_bytes=(memory + client_id) * MIB, predicted_peak_bytes=predicted,
        measured_peak_bytes=int(predicted * (1 - 0.002 * (client_id % 4))) if audited else None,
        predicted_up_bytes=sent, predicted_down_bytes=sent, up_bytes=sent if outcome == "ok" else 0,
        down_bytes=sent, provision_bytes=87 * MIB if number <= 2 else 0,
        num_rows=40 + client_id, num_steps=6,
        virtual_seconds=seconds * (1 + 0.03 * (client_id % 7)), wall_seconds=0.4,
        joules=seconds * 4.0, outcome=outcome, loss=2.0 / number if outcome == "ok" else None,
        attempts=1, message="",
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def twelve_clients(number):
    # Weaker classes are asked less often.
    chances = np.array([1.0, 1.5, 2.5, 3.0] * 6)
    asked = np.random.default_rng(number).choice(24, 12, replace=False, p=chances / chances.sum())
    records = []
    for place, client_id in enumerate(sorted(asked.tolist())):
        outcome = {(3, 1): "late", (5, 9): "dropped", (7, 4): "late", (8, 2): "oom"}.get(
            (number, place), "ok"
        )
        records.append(client_record(number, client_id, outcome))
    if number == 6:
        message = f"the loss of client {records[0].client_id} is nan after 6 steps"
        records[0] = dataclasses.replace(records[0], outcome="failed", loss=None, up_bytes=0, message=message)
    return records


def round_record(number, clients, accuracy):
    outcomes = [record.outcome for record in clients]
    return RoundRecord(
        round=number, accuracy=accuracy, loss=None if accuracy is None else 2.8 * (1 - accuracy),
        virtual_seconds=max((r.virtual_seconds for r in clients), default=1.0), wall_seconds=6.5,
        up_bytes=sum(r.up_bytes for r in clients), down_bytes=sum(r.down_bytes for r in clients),
        joules=sum(r.joules for r in clients), num_ok=outcomes.count("ok"), num_late=outcomes.count("late"),
        num_dropped=outcomes.count("dropped"), num_oom=outcomes.count("oom"),
        num_failed=outcomes.count("failed"), drift=0.0,
    )  # fmt: skip


def evaluations_after(number):
    climbed = 0.76 * (1 - 0.72**number)
    rows = [
        EvaluationRecord(
            round=number,
            split="test",
            client_id=i,
            device_class=list(CLASSES)[i % 4],
            num_rows=8 + i % 5,
            accuracy=float(np.clip(climbed + 0.05 * np.sin(3 * i) + 0.02 * (i % 4), 0, 1)),
            loss=1.0,
        )
        for i in range(24)
    ]
    whole = EvaluationRecord(
        round=number,
        split="validation",
        client_id=-1,
        device_class="",
        num_rows=200,
        accuracy=climbed - 0.03,
        loss=1.1,
    )
    return [*rows, whole]


def leave(folder, rounds, clients, evaluations):
    folder.mkdir(exist_ok=True)
    for name, rows, kind in (
        ("rounds", rounds, RoundRecord),
        ("clients", clients, ClientRecord),
        ("evaluations", evaluations, EvaluationRecord),
    ):
        pq.write_table(table(rows, kind), folder / f"{name}.parquet")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11.7", "torch": "2.13.0", "cpu_count": 2})
    )
    return folder


def tiny_run(folder, **changes):
    """Two rounds of one client that can be added up by hand."""
    one = client_record(
        1, 3, measured_peak_bytes=None, up_bytes=10, down_bytes=20, provision_bytes=1000, joules=3.0
    )
    two = client_record(
        2, 3, measured_peak_bytes=None, up_bytes=11, down_bytes=22, provision_bytes=0, joules=4.0
    )
    clients = [dataclasses.replace(one, **changes), two]
    rounds = [
        dataclasses.replace(round_record(n, [r], accuracy), virtual_seconds=n * 10.0)
        for n, r, accuracy in ((1, one, 0.25), (2, two, 0.5))
    ]
    return leave(folder, rounds, clients, [])
