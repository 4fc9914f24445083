"""Client records: what is known once a round has closed, and what training adds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from fedray.clock import ClosedRound
from fedray.closing import charge_at_start, short_of_charge, short_of_memory
from fedray.holdings import Holdings
from fedray.observable import statistics_to_json
from fedray.progress import Progress
from fedray.record import ClientRecord, Outcome
from fedray.rounds import Asked, Trained, broadcast_bytes
from fedray.scene import Scene
from fedray.training.job import Update
from fedray.units import show_bytes


def told_by_the_clock(
    scene: Scene, progress: Progress, asked: Asked, closed: ClosedRound, measured: Mapping[int, int]
) -> list[ClientRecord]:
    """One row per asked client, as if nobody trained.

    Args:
        scene: of the run.
        progress: before the round.
        asked: the round's clients.
        closed: what became of them.
        measured: peak bytes of those that were audited.
    """
    rows = []
    terms, base_delta = asked.schedule.terms, progress.state.base_delta
    jobs = asked.jobs
    padding = scene.padding_bytes(
        [job.assignment for job in jobs], [job.tokens for job in jobs], [job.attention for job in jobs]
    )
    broadcast = cache(lambda assignment: broadcast_bytes(scene.anatomy, base_delta, assignment))
    sizes = scene.anatomy.piece_bytes()
    for i, job in enumerate(jobs):
        client, at = job.client_id, int(asked.positions[i])
        held_blocks, held_share = held_so_far(progress.holdings, client, sizes)
        sent_bytes = job.sent_bytes + broadcast(job.assignment)
        rows.append(
            ClientRecord(
                round=job.round,
                client_id=client,
                device_class=str(asked.cohort.device_class[i]),
                assignment=job.assignment.to_json(),
                memory_bytes=int(asked.cohort.device.memory_bytes[i]),
                predicted_peak_bytes=int(terms.peak_bytes[at]),
                measured_peak_bytes=measured.get(client),
                predicted_up_bytes=int(terms.up_bytes[at]),
                predicted_down_bytes=int(terms.down_bytes[at]),
                up_bytes=int(closed.up_bytes[i]),
                down_bytes=sent_bytes if closed.received[i] else int(closed.down_bytes[i]),
                provision_bytes=int(closed.provision_bytes[i]),
                num_rows=job.num_rows,
                num_steps=job.num_steps,
                virtual_seconds=float(closed.client_seconds[i]),
                wall_seconds=None,
                joules=float(closed.joules[i]),
                outcome=closed.outcomes[i],
                cut=job.assignment.cut if job.assignment.split else None,
                leakage=scene.leaked(job.assignment),
                waiting_seconds=float(closed.waiting_seconds[i]),
                boundary_up_bytes=int(closed.boundary_up_bytes[i]),
                boundary_down_bytes=int(closed.boundary_down_bytes[i]),
                num_messages=int(closed.num_messages[i]),
                predicted_boundary_up_bytes=int(terms.boundary_up_bytes[at]),
                predicted_boundary_down_bytes=int(terms.boundary_down_bytes[at]),
                loss=None,
                attempts=0,
                message=_why_out_of_memory(asked, i, closed.outcomes[i], measured.get(client))
                or short_of_charge(closed, i),
                predicted_seconds=float(terms.virtual_seconds[at]),
                start_seconds=asked.begins,
                attack=_attack(scene, client),
                padding_bytes=int(padding[i]) if closed.outcomes[i] == "ok" else 0,
                receive_seconds=float(closed.receive_seconds[i]),
                compute_seconds=float(closed.compute_seconds[i]),
                send_seconds=float(closed.send_seconds[i]),
                held_blocks=held_blocks,
                held_share=held_share,
                charge_joules=charge_at_start(asked.cohort, i),
            )
        )
    return rows


def held_so_far(holdings: Holdings, client: int, sizes: Mapping[str, int]) -> tuple[str, float]:
    """Blocks of the frozen model that a client has ever held, as ``0-2, 5``, and their share of its bytes.

    Args:
        holdings: of the run; with a preinstalled model everybody has all.
        client: its id.
        sizes: bytes of the whole model's pieces, such as ``block.3``.
    """
    # A part of a block, or one in few bits, is a piece of its own: "block.3 in 4 bits".
    pieces = {name.partition(" ")[0] for name in holdings.ever_held(client)}
    pieces = set(sizes) if holdings.preinstalled else pieces & set(sizes)
    blocks = sorted(int(name.removeprefix("block.")) for name in pieces if name.startswith("block."))
    share = sum(sizes[name] for name in pieces) / sum(sizes.values())
    return in_runs(blocks), share


def in_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers with what follows each other as one: ``0-2, 5``; empty for none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _attack(scene: Scene, client: int) -> str:
    plan = scene.poisoning
    return plan.name if plan is not None and client in plan.attackers else ""


def told_by_training(record: ClientRecord, trained: Trained) -> ClientRecord:
    """The same row with what training came to; as it was for a client that did not train."""
    client = record.client_id
    if client in trained.vanished:
        return replace(record, outcome="dropped")
    update = trained.updates.get(client)
    if update is None:
        return record
    failed = client not in trained.up_bytes
    timed = record.boundary_up_bytes, record.boundary_down_bytes, record.num_messages
    up, down, messages = trained.boundary.get(client) or timed
    return replace(
        record,
        up_bytes=trained.up_bytes.get(client, record.up_bytes),
        wall_seconds=update.wall_seconds,
        outcome="failed" if failed else record.outcome,
        boundary_up_bytes=up,
        boundary_down_bytes=down,
        num_messages=messages,
        loss=None if failed else update.loss,
        attempts=trained.attempts.get(client, 0),
        message=update.message,
        lost_share=update.lost,
        statistics=_statistics(update),
    )


def _why_out_of_memory(asked: Asked, i: int, outcome: Outcome, held_bytes: int | None) -> str:
    has, says = int(asked.device.memory_bytes[i]), int(asked.cohort.device.memory_bytes[i])
    if outcome != "oom":
        return ""
    if held_bytes is None or has < says:
        return short_of_memory(has, says)
    return f"its audit ended it at {show_bytes(held_bytes)}, above its memory"


def _statistics(update: Update) -> str:
    return statistics_to_json({name: tensor.tolist() for name, tensor in update.statistics.items()})
