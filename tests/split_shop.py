"""What tests of cuts share: jobs cut in two, both halves trained in this process, and whole models beside."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedray.adapter import Adapter
from fedray.assignment import Assignment
from fedray.server.in_process import InProcessServer
from fedray.server.lockstep import Order, Server, SplitRound, run_lockstep, updates_of
from fedray.training.base_delta import BaseDelta
from fedray.training.boundary import read_by_loss
from fedray.training.client_half import PackHalves
from fedray.training.job import Job, Update
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packs import form_packs
from fedray.training.train import Workshop, train_pack
from shop import BLOCKS, LABELS, VOCABULARY

# So large that a delta is the gradient: what the weights were is lost in its rounding.
STEEP = LocalOptimizer(optim="sgd", learning_rate=1e4, max_grad_norm=None)
SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
FAMILIES = ["llama", "qwen3", "gpt2", "bert", "vit"]


def cut_at(whole: Assignment, cut: int, tail: int = 0) -> Assignment:
    """The same work with a cut."""
    return replace(whole, blocks=tuple(range(cut)), split=True, tail=tail)


def targets_of(workshop: Workshop) -> tuple[str, ...]:
    """What the workshop's task reads where its loss lies."""
    batch = {name: t.to("meta") for name, t in workshop.pool.batch(workshop.partitions[0][:2], 24).items()}
    return read_by_loss(
        workshop.task, batch, LABELS if workshop.task.head == "classification" else VOCABULARY
    )


def train_split(
    workshop: Workshop, jobs: Sequence[Job], *, order: Order = "sweep", num_shards: int = 1, per_pack: int = 8
) -> dict[int, Update]:
    """Updates of a round under cuts with the server in this process, by client."""
    packs = packs_of(jobs, per_pack)
    return ridden(workshop, packs, in_process(workshop, packs, num_shards=num_shards), order=order)


def packs_of(jobs: Sequence[Job], per_pack: int) -> dict[int, list[Job]]:
    """The packs of a round by place."""
    return dict(enumerate(map(list, form_packs(jobs, per_pack))))


def in_process(
    workshop: Workshop,
    packs: Mapping[int, Sequence[Job]],
    *,
    num_shards: int,
    shared: Adapter | None = None,
    recompute: bool = False,
    base_delta: BaseDelta | None = None,
) -> InProcessServer:
    """A round's server in this process."""
    return InProcessServer(
        workshop,
        SplitRound(packs=packs, shared=shared, base_delta=base_delta or {}),
        num_shards=num_shards,
        attention="memory_efficient",
        recompute=recompute,
    )


def ridden(
    workshop: Workshop,
    packs: Mapping[int, Sequence[Job]],
    server: Server,
    *,
    order: Order = "sweep",
    shared: bool = False,
    base_delta: BaseDelta | None = None,
) -> dict[int, Update]:
    """Updates of a round that any server is open for, by client."""
    clients = PackHalves(
        workshop, packs, targets_of(workshop), clips_as_one=not shared, base_delta=base_delta
    )
    run_lockstep(clients, server, order, shared=shared)
    return {u.client_id: u for _, found in updates_of(packs, clients, server) for u in found}


def train_whole(workshop: Workshop, jobs: Sequence[Job]) -> dict[int, Update]:
    """Updates of the same jobs without their cuts, each trained alone."""
    whole = [
        replace(j, assignment=replace(j.assignment, blocks=tuple(range(BLOCKS)), split=False, tail=0))
        for j in jobs
    ]
    return {j.client_id: train_pack(workshop, [j])[0] for j in whole}


def distance(left: Adapter, right: Adapter) -> float:
    """The largest relative Frobenius distance of any tensor."""
    ours, theirs = left.tensors(), right.tensors()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)) for n in ours)
