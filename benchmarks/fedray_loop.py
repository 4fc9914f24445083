"""fedray on the works: packs of jobs carried out by its own runtimes, summed by its own rule.

Run by `bench.py`::

    python benchmarks/fedray_loop.py WORK OUT [SEED] [--runtime local|on_ray] [--device cpu|cuda]
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import unlike
import works

from fedray.adapter import Adapter, Factors, GlobalState
from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment, lora_on_top
from fedray.model.anatomy import dissect
from fedray.rounds import Runtime
from fedray.runtime.carrier import TrainPack
from fedray.runtime.local import LocalRuntime
from fedray.seeds import derive_seed
from fedray.training.data import Encoded, Rows, batch_plan
from fedray.training.job import Job, lone_job
from fedray.training.link import as_received
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packs import form_packs
from fedray.training.shapes import site_ranks
from fedray.training.tasks.causal_lm import CausalLm
from fedray.training.workshop import Blueprint, Stock, arrays_of

LONGEST = 64
# packs.clients_per_pack and packs.tokens_per_wave. Tiny clients want large packs, to spread what a step costs
# anyway; a wave's activations should stay in the cache, and unlike clients of like depth share packs.
PACKS = {"S": (128, 4096), "M": (64, 1024), "L": (16, 2048), "H": (16, 6144)}
# An accelerator has no cache to stay in, and multiplies thousands of tokens while it starts one kernel.
ON_ACCELERATOR = {"S": (128, 65536), "M": (64, 65536), "L": (64, 65536), "H": (64, 65536)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A work in fedray's words: what each client has and does, by client id."""

    width: int
    blocks: int
    rank: int
    rounds: int
    rows: Sequence[Sequence[torch.Tensor]]
    assignments: Sequence[Assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How the packs are carried out."""

    runtime: str
    device: str
    clients_per_pack: int
    tokens_per_wave: int


def setting_of(name: str, seed: int) -> Setting:
    """S, M, L, or H with this seed."""
    if name == "H":
        clients = unlike.draw(seed)
        return Setting(
            width=unlike.WIDTH,
            blocks=unlike.BLOCKS,
            rank=max(unlike.RANKS),
            rounds=unlike.ROUNDS,
            rows=[client.rows for client in clients],
            assignments=[_assignment(unlike.BLOCKS, c.depth, c.rank, unlike.BATCH) for c in clients],
        )
    work = works.WORKS[name]
    return Setting(
        width=work.width,
        blocks=work.blocks,
        rank=works.RANK,
        rounds=work.rounds,
        rows=[list(works.data(work, client)) for client in range(work.clients)],
        assignments=[_assignment(work.blocks, work.blocks, works.RANK, work.batch)] * work.clients,
    )


def _assignment(blocks: int, depth: int, rank: int, batch: int) -> Assignment:
    lora = lora_on_top(blocks, depth, rank, targets=works.TARGETS, scale=works.SCALE)
    return Assignment(blocks=tuple(range(blocks)), adapter=lora, batch_size=batch)


def run(setting: Setting, running: Running, out: Path) -> None:
    """The rounds, each timed from the global state to the next one."""
    model = works.decoder(setting.width, setting.blocks)
    anatomy = dissect(model)
    pool = _pool(setting)
    blueprint = Blueprint(
        config=model.config,
        targets=works.TARGETS,
        task=CausalLm(),
        optimizer=LocalOptimizer(optim="sgd", learning_rate=works.LEARNING_RATE, max_grad_norm=None),
        max_length=LONGEST,
        tokens_per_wave=running.tokens_per_wave,
        threads=(os.cpu_count() or 1) if running.runtime == "local" else 1,
        device=running.device,
    )
    stock = Stock(weights={"fp32": arrays_of(model)}, rows=pool, partitions=_partitions(setting))
    runtime: Runtime = LocalRuntime(blueprint, stock)
    if running.runtime == "on_ray":
        from fedray.runtime.on_ray import Cluster, RayRuntime  # Ray is not on every machine with a GPU

        runtime = RayRuntime(blueprint, stock, Cluster())
    rule = make_aggregation("factor_mean", {"mode": "zero_pad", "form": "delta"})
    ranks = [site_ranks(anatomy, assignment) for assignment in setting.assignments]
    state, rounds = _first(setting), []
    for _ in range(setting.rounds):
        start = time.perf_counter()
        jobs = [_job(setting, c, rule.send(state, own, 0)) for c, own in enumerate(ranks)]
        packs = form_packs(jobs, running.clients_per_pack)
        answers = runtime.carry_out([TrainPack(jobs=pack, base_delta={}) for pack in packs])
        updates = {update.client_id: update for done in answers for update in done.answer}
        total = rule.start(state)
        for job in jobs:
            delta = as_received(job, updates[job.client_id]).delta
            assert delta is not None
            total.add(delta, job.sent, 1.0)
        state = total.finish()
        rounds.append(time.perf_counter() - start)
    runtime.close()
    works.report(rounds, {name: t.numpy() for name, t in state.adapter.tensors().items()}, out)


def _job(setting: Setting, client: int, sent: Adapter) -> Job:
    rows, assignment = setting.rows[client], setting.assignments[client]
    longest = max(len(row) for row in rows)
    alone = lone_job(assignment, sent, num_rows=len(rows), tokens=longest)
    # The same round always, and with it the order of the batches: see _partitions.
    return replace(alone, round=0, client_id=client)


def _first(setting: Setting) -> GlobalState:
    model = works.with_lora(works.decoder(setting.width, setting.blocks), setting.rank)
    tensors = {name: parameter.detach().clone() for name, parameter in works.named(model).items()}
    sites = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    factors = {
        site: Factors(a=tensors[f"{site}.lora_A"], b=tensors[f"{site}.lora_B"], scale=works.SCALE)
        for site in sites
    }
    return GlobalState(adapter=Adapter(factors=factors))


def _pool(setting: Setting) -> Encoded:
    rows = [row.numpy() for own in setting.rows for row in own]
    lengths = np.array([len(row) for row in rows])
    return Encoded(
        lengths=lengths,
        starts=np.cumsum(lengths) - lengths,
        lists={"input_ids": np.concatenate(rows).astype(np.int32)},
        numbers={},
        pad_id=0,
    )


def _partitions(setting: Setting) -> tuple[Rows, ...]:
    """Each client's rows, placed so that its shuffled batches visit them in the work's own order."""
    partitions, first = [], 0
    for client, (rows, assignment) in enumerate(zip(setting.rows, setting.assignments, strict=True)):
        plan = batch_plan(len(rows), assignment.batch_size, 1, None, derive_seed(0, "batches", 0, client, 0))
        own = np.empty(len(rows), dtype=np.int64)
        own[np.concatenate(plan)] = np.arange(first, first + len(rows))
        partitions.append(own)
        first += len(rows)
    return tuple(partitions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=[*works.WORKS, "H"])
    parser.add_argument("out", type=Path)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--runtime", choices=["local", "on_ray"], default="local")
    parser.add_argument("--device", default="cpu", help="of the local runtime")
    parser.add_argument("--packs", type=int, nargs=2, metavar=("CLIENTS_PER_PACK", "TOKENS_PER_WAVE"))
    given = parser.parse_args()
    usual = PACKS if given.device == "cpu" else ON_ACCELERATOR
    clients_per_pack, tokens_per_wave = given.packs or usual[given.work]
    run(
        setting_of(given.work, given.seed),
        Running(
            runtime=given.runtime,
            device=given.device,
            clients_per_pack=clients_per_pack,
            tokens_per_wave=tokens_per_wave,
        ),
        given.out,
    )
