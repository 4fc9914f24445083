"""What crosses a cut and what a server does for it, in real rounds, against what footprints say."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedray.adapter import Adapter
from fedray.assignment import Assignment, HeadOnly, Lora
from fedray.cost import Device, StepCost, WorkShape
from fedray.model.anatomy import dissect
from fedray.model.counter import CPU_FLASH_FLOPS, ByteCounter
from fedray.model.load import empty_backbone
from fedray.riders import Riders
from fedray.server.lockstep import Order, Traffic, run_lockstep
from fedray.training.boundary import read_by_loss
from fedray.training.client_half import PackHalves
from fedray.training.data import FILLER
from fedray.training.footprint import FootprintTracer, TraceSubject
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packs import form_packs
from fedray.training.train import Workshop
from lone import Case, real, subject
from shop import BLOCKS, CONFIGS, LABELS, TARGETS, TASKS, build, job, num_labels
from split_shop import in_process

FAMILIES = ["llama", "qwen3", "gpt2", "bert", "vit"]
SIZES = (9, 4, 13, 6, 5, 8, 7, 3)
CLIPPED = LocalOptimizer(max_grad_norm=0.5)
UNCLIPPED = LocalOptimizer(optim="sgd", max_grad_norm=None)
ONES = np.ones(1)
ANY_DEVICE = Device(
    memory_bytes=np.ones(1, np.int64), storage_bytes=np.ones(1, np.int64), flops_per_s={"fp32": ONES},
    memory_bytes_per_s=ONES, up_bps=ONES, down_bps=ONES, rtt_seconds=ONES, compute_watts=ONES,
    idle_watts=ONES, radio_joules_per_byte=ONES,
)  # fmt: skip


def asked(family: str, cut: int, tail: int, codec: str, ranks: tuple[int, ...], epochs: int) -> Assignment:
    return Assignment(
        blocks=tuple(range(cut)),
        split=True,
        tail=tail,
        cut_codec=codec,
        adapter=Lora(ranks=ranks, targets=TARGETS[family]) if any(ranks) else HeadOnly(),
        batch_size=4,
        num_epochs=epochs,
    )


# Cut, tail, codec, ranks. Nothing below the cut is trained: 0, 1, 4, 6, 7. Nothing above: 3. Nothing between
# cut and tail: 5, 6. The first two share packs, and so do 5 and 8.
KNOBS: tuple[tuple[int, int, str, tuple[int, ...]], ...] = (
    (0, 0, "none", (2, 0, 4, 1)),
    (0, 0, "none", (0, 0, 0, 2)),
    (1, 0, "int8", (2, 2, 2, 2)),
    (3, 0, "top10", (1, 4, 2, 0)),
    (2, 1, "bf16", (0, 0, 2, 2)),
    (2, 1, "int4", (4, 0, 0, 1)),
    (1, 1, "none", (0, 0, 0, 8)),
    (2, 0, "int4", (0, 0, 2, 1)),
    (2, 1, "int4", (1, 2, 1, 0)),
)


def meta_batch(workshop: Workshop, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {k: t.to("meta") for k, t in workshop.pool.batch(np.full(rows, FILLER), tokens).items()}


def tracer(workshop: Workshop, family: str, *, clips_as_one: bool) -> FootprintTracer:
    return FootprintTracer(
        TraceSubject(
            anatomies={"fp32": dissect(empty_backbone(CONFIGS[family], TASKS[family].head))},
            task=workshop.task,
            num_labels=num_labels(family),
            optimizer=workshop.optimizer,
            meta_batch=lambda rows, tokens: meta_batch(workshop, rows, tokens),
            clips_as_one=clips_as_one,
        ),
        None,
    )


def predicted(workshop: Workshop, work: Job, trace: FootprintTracer) -> Riders:
    shape = WorkShape(rows=work.assignment.batch_size, tokens=work.tokens, attention=work.attention)
    num_tokens = int(workshop.pool.lengths[workshop.partitions[work.client_id]].sum())
    rows = np.array([work.num_rows])
    cost = StepCost(longest=trace(work.assignment, shape))
    return Riders.of(cost, work.assignment, ANY_DEVICE, rows, np.array([num_tokens]))


def targets_of(workshop: Workshop) -> tuple[str, ...]:
    anatomy = next(iter(workshop.backbones.values())).anatomy
    is_classifier = workshop.task.head == "classification"
    outputs = LABELS if is_classifier else anatomy.model.config.vocab_size
    return read_by_loss(workshop.task, meta_batch(workshop, 2, 24), outputs)


def run(workshop: Workshop, jobs: Sequence[Job], *, order: Order = "sweep", shared: bool = False) -> Traffic:
    """A whole round with the server in this process."""
    packs = dict(enumerate(form_packs(jobs, 8 if order == "sweep" else 1)))
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=not shared)
    server = in_process(
        workshop,
        packs,
        num_shards=2,
        shared=_server_adapter(workshop) if shared else None,
    )
    return run_lockstep(clients, server, order, shared=shared)


def _server_adapter(workshop: Workshop) -> Adapter:
    return job(workshop, "bert", 0, asked("bert", 0, 0, "none", (4,) * BLOCKS, 1)).sent


@pytest.mark.parametrize("optimizer", [CLIPPED, UNCLIPPED], ids=["clipped", "unclipped"])
@pytest.mark.parametrize(
    ("family", "epochs"), [("bert", 1), ("bert", 3), ("llama", 1), ("llama", 3), ("vit", 3)]
)
def test_what_crosses_a_cut_in_a_round_is_what_was_predicted_to_the_byte(
    family: str, optimizer: LocalOptimizer, epochs: int
) -> None:
    workshop = build(family, [*SIZES, 10, 11, 12], optimizer)
    jobs = [job(workshop, family, c, asked(family, *knobs, epochs)) for c, knobs in enumerate(KNOBS)]
    if num_labels(family):  # a head trains where nothing else does, and has a like at a cut
        headed = asked(family, 1, 1, "int8", (0,) * BLOCKS, epochs)
        at_cut = replace(asked(family, 2, 0, "int4", (2, 2, 0, 2), epochs), local_loss=True)
        jobs += [job(workshop, family, len(jobs) + i, a) for i, a in enumerate((headed, at_cut))]
    trace = tracer(workshop, family, clips_as_one=True)
    for order in ("sweep", "queue"):
        traffic = run(workshop, jobs, order=order)
        for work in jobs:
            riders, client = predicted(workshop, work, trace), work.client_id
            found = [traffic.up_bytes[client], traffic.down_bytes.get(client, 0)]
            assert found == [riders.up_bytes[0], riders.down_bytes[0]], (order, work.assignment)
            assert traffic.num_messages[client] == riders.num_messages[0], (order, work.assignment)


def test_under_a_shared_adapter_no_norms_cross() -> None:
    workshop = build("bert", SIZES, CLIPPED)
    jobs = [job(workshop, "bert", c, asked("bert", *knobs, 1)) for c, knobs in enumerate(KNOBS[:-1])]
    trace = tracer(workshop, "bert", clips_as_one=False)
    traffic = run(workshop, jobs, shared=True)
    for work in jobs:
        riders, client = predicted(workshop, work, trace), work.client_id
        assert traffic.up_bytes[client] == riders.up_bytes[0]
        assert traffic.down_bytes.get(client, 0) == riders.down_bytes[0]
        assert traffic.num_messages[client] == riders.num_messages[0]


def test_a_step_under_a_tail_sends_four_messages_of_which_each_number_is_known() -> None:
    # By hand: 16 numbers a token; int8 is a byte each and an fp32 scale, twice up and twice down. Up goes a
    # length a row too. Both sides clip as one: 4 bytes each way a step.
    workshop = build("bert", [6], CLIPPED)
    work = job(workshop, "bert", 0, asked("bert", 1, 1, "int8", (2, 2, 2, 2), 1))
    tokens = int(workshop.pool.lengths[:6].sum())
    traffic = run(workshop, [work])
    assert traffic.up_bytes[0] == 2 * tokens * (16 + 4) + 6 * 4 + 2 * 4
    assert traffic.down_bytes[0] == 2 * tokens * (16 + 4) + 2 * 4
    assert traffic.num_messages[0] == 2 * 4


def lone_case(
    family: str, cut: int, tail: int, codec: str, ranks: tuple[int, ...], tokens: int = 128
) -> Case:
    return Case(
        family=family,
        assignment=replace(asked(family, cut, tail, codec, ranks, 1), batch_size=2),
        shape=WorkShape(rows=2, tokens=tokens, attention="memory_efficient"),
        optimizer=LocalOptimizer(),
    )


def torch_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=dict(CPU_FLASH_FLOPS))


Counter = ByteCounter | FlopCounterMode


def serve_a_step(case: Case, *, up: Counter, back: Counter, recompute: bool) -> None:
    """A client's step, its server's forward and backward under counters."""
    workshop, work = real(case)
    packs = {0: [work]}
    clients = PackHalves(workshop, packs, targets_of(workshop), clips_as_one=True)
    server = in_process(workshop, packs, num_shards=1, recompute=recompute)
    sent = clients.ascend(0)
    if isinstance(up, ByteCounter):
        model = workshop.backbones["fp32"].anatomy.model
        up.hold([*model.parameters(), *model.buffers()], "weights")
        (message,) = sent[0].values()
        assert message.states is not None
        up.hold(list(message.states.tensors.values()), "activations")
    with up:
        exits = server.forward(sent)
    turned = clients.turn(exits) if exits else {}
    with back:
        server.backward(turned)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_and_bytes_of_a_step_on_a_real_server_are_those_traced(family: str, recompute: bool) -> None:
    for knobs in KNOBS[:-1]:
        case = lone_case(family, *knobs)
        workshop, _ = real(case)
        trace = FootprintTracer(replace(subject(case, workshop), server_recompute=recompute), None)
        share = trace(case.assignment, case.shape).server
        assert share is not None
        assert (share.first_block, share.end_block) == (knobs[0], BLOCKS - knobs[1])
        up, back = torch_counter(), torch_counter()
        serve_a_step(case, up=up, back=back, recompute=recompute)
        assert share.flops == up.get_total_flops() + back.get_total_flops(), case
        counter = ByteCounter()
        serve_a_step(case, up=counter, back=counter, recompute=recompute)
        held = counter.peak - counter.peak_terms["weights"]
        # Before a step of the optimizer some of what an adapter takes is not there yet.
        assert share.activation_bytes * 0.99 < held, case
        assert held < (share.activation_bytes + share.adapter_bytes) * 1.01, case


def test_a_real_server_holds_one_mask_of_tokens_by_tokens_however_long_the_rows() -> None:
    # 2 rows of 512 tokens: a second one through the head would be 2 MiB beside 5.
    case = lone_case("llama", *KNOBS[3], tokens=512)
    workshop, _ = real(case)
    share = FootprintTracer(subject(case, workshop), None)(case.assignment, case.shape).server
    assert share is not None
    counter = ByteCounter()
    serve_a_step(case, up=counter, back=counter, recompute=False)
    assert counter.peak - counter.peak_terms["weights"] < share.activation_bytes * 1.01
