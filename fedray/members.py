"""What a run tries to tell of who trained its model: by losses, and by those of shadow models beside it.

Carriers train shadows as they train clients, so they are the same wherever a run is carried out.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedray.adapter import Adapter, GlobalState, is_auxiliary, is_of_an_exit
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.attacks.membership import strength
from fedray.attacks.shadows import halves_of, shadow_jobs, told_by
from fedray.cost import Floats
from fedray.evaluation import held_out, losses_on
from fedray.offered import targets_of
from fedray.record import ClientRecord, RoundRecord
from fedray.rounds import Runtime
from fedray.runtime.carrier import CastShadows
from fedray.scene import Scene
from fedray.seeds import derive_seed, generator
from fedray.training.data import Rows
from fedray.training.job import Job, lone_job
from fedray.training.shapes import initial_adapter


def with_membership(
    scene: Scene, state: GlobalState, record: RoundRecord, clients: Iterable[ClientRecord], runtime: Runtime
) -> RoundRecord:
    """The record of a round with what losses tell of who trained the state; as it is where nobody has.

    Members are rows of clients whose updates have counted so far, all of them, seen by a local step or not;
    the others are held out. As many are drawn of both.

    Args:
        scene: whose configuration asks for it.
        state: after the round.
        record: of the round.
        clients: of all client-rounds so far.
        runtime: where rows are evaluated, and shadows trained.
    """
    counted = sorted({one.client_id for one in clients if one.outcome == "ok"})
    others = held_out(scene)
    if not counted or not len(others):
        return record
    sides = np.concatenate([scene.partitions.train[one] for one in counted]), others
    count = min(scene.config.attacks.rows, *map(len, sides))
    random = generator(scene.config.seed, "membership", record.round)
    rows = np.concatenate([np.sort(random.permutation(side)[:count]) for side in sides])
    losses = losses_on(scene, state, rows, runtime)
    told = strength(-losses[:count], -losses[count:])
    record = replace(record, membership_auc=told.auc, membership_found=told.true_positive_rate)
    return _with_ratio(scene, record, rows, losses, runtime) if scene.config.attacks.shadows else record


def _with_ratio(
    scene: Scene, record: RoundRecord, rows: Rows, losses: Floats, runtime: Runtime
) -> RoundRecord:
    """With what the likelihood ratio tells of these rows, members and as many others."""
    seed = derive_seed(scene.config.seed, "shadows", record.round)
    halves = halves_of(rows, scene.config.attacks.shadows, seed)
    jobs = shadow_jobs(replace(_shadow_job(scene), seed=seed), halves)
    size = scene.config.packs.clients_per_pack
    orders = [
        CastShadows(jobs=tuple(jobs[start : start + size]), halves=halves, rows=rows)
        for start in range(0, len(jobs), size)
    ]
    seen: Floats = np.concatenate([done.answer for done in runtime.carry_out(orders)])
    out = np.stack([~np.isin(rows, half) for half in halves])
    told = told_by(losses, seen, out, len(rows) // 2)
    if told is None:
        return record
    return replace(record, membership_ratio_auc=told.auc, membership_ratio_found=told.true_positive_rate)


def _shadow_job(scene: Scene) -> Job:
    """What every shadow does: train what the run trains, on the whole model, from what the run began with."""
    start = initial_adapter(scene.anatomy, scene.menu, scene.num_labels, scene.config.seed)
    # Heads below the model's own are no part of what is asked about.
    head = {n: t for n, t in start.head.items() if not is_auxiliary(n) and not is_of_an_exit(n)}
    own = Assignment(
        blocks=tuple(range(scene.anatomy.num_blocks)),
        adapter=_trained_by_all(scene, start),
        dtype="fp32" if "fp32" in scene.anatomies else next(iter(scene.anatomies)),
        batch_size=max(scene.config.menu.per_device_train_batch_size),
        num_epochs=scene.config.attacks.shadow_epochs,
    )
    return lone_job(own, replace(start, head=head), num_rows=0, tokens=scene.max_length)


def _trained_by_all(scene: Scene, start: Adapter) -> Lora | HeadOnly:
    """Each block at the rank of the global adapter, which is the largest that anybody has there."""
    targets = targets_of(scene.config, scene.anatomy)
    ranks = []
    for block in range(scene.anatomy.num_blocks):
        sites = scene.anatomy.sites(block, targets)
        ranks.append(max((start.factors[site].rank for site in sites if site in start.factors), default=0))
    if not any(ranks):
        return HeadOnly()
    any_site = next(iter(start.factors.values()))
    return Lora(ranks=tuple(ranks), targets=targets, scale=any_site.scale, train_a=any_site.train_a)
