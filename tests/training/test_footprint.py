"""Footprints against the real step: live bytes, torch's allocator and FLOP counter, bytes on the wire."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

import shop
from fedray.assignment import ATTENTIONS, Assignment, Attention, HeadOnly, Lora
from fedray.cost import Footprint, WorkShape
from fedray.model.anatomy import dissect
from fedray.model.counter import CPU_FLASH_FLOPS, ByteCounter
from fedray.model.load import empty_backbone
from fedray.model.wire import wire_bytes
from fedray.training.audit import audit
from fedray.training.footprint import FootprintTracer
from fedray.training.held import weights
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import train_pack
from lone import CONFIGS, DEEP, LONG, Case, allocator_peak, real, subject, tracer
from shop import BLOCKS, TARGETS, assign, b_alone, build, job

LENGTHS = (32, 256, 1024)
PER_FAMILY = 15  # 60 assignments in all


def cases(family: str) -> Iterator[Case]:
    random = np.random.default_rng(sum(map(ord, family)))
    for i in range(PER_FAMILY):
        ranks = tuple(int(r) for r in random.choice([0, 1, 4, 16], DEEP))
        adapter = (
            HeadOnly()
            if i == 0 and family == "bert"
            else Lora(
                ranks=ranks if any(ranks) else (0,) * (DEEP - 1) + (2,),
                targets=TARGETS[family],
                scale=2.0,
                train_a=i % 5 != 2,
            )
        )
        tokens = LENGTHS[i % 3]
        rows = 1 if tokens == 1024 else int(random.integers(1, 4))
        yield Case(
            family=family,
            assignment=Assignment(
                blocks=tuple(range(DEEP)),
                adapter=adapter,
                dtype="bf16" if i % 4 == 3 else "fp32",
                recompute=bool(random.integers(2)) and isinstance(adapter, Lora),
                batch_size=rows,
            ),
            shape=WorkShape(rows=rows, tokens=tokens, attention=ATTENTIONS[int(random.integers(2))]),
            optimizer=LocalOptimizer(
                optim="adamw" if i % 2 else "sgd",
                max_grad_norm=1.0 if i % 2 else None,
                proximal_mu=0.1 if i % 6 > 3 else 0.0,
                control_variates=i % 4 == 0,
            ),
        )


@pytest.mark.parametrize("family", list(CONFIGS))
def test_traced_bytes_flops_and_wire_are_those_of_the_real_step(family: str) -> None:
    for case in cases(family):
        workshop, work = real(case)
        footprint = tracer(case, workshop)(case.assignment, case.shape)
        counted = audit(workshop, work).peak_bytes
        assert footprint.peak_bytes == pytest.approx(counted, rel=0.02), case
        assert footprint.terms.total == footprint.peak_bytes
        with FlopCounterMode(display=False, custom_mapping=dict(CPU_FLASH_FLOPS)) as torch_counter:
            (update,) = train_pack(workshop, [work], recompute=True)
        flops = footprint.forward_flops + footprint.backward_flops
        assert flops == pytest.approx(torch_counter.get_total_flops(), rel=0.01), case
        assert update.delta is not None
        tensors = {name: t.contiguous() for name, t in update.delta.tensors().items()}
        assert footprint.up_bytes == len(safetensors.torch.save(tensors)) == wire_bytes(tensors)
        sent = {name: t.contiguous() for name, t in work.sent.tensors().items()}
        if case.optimizer.control_variates:  # the server's, as large again
            sent |= {f"variate.{name}": t.clone() for name, t in sent.items()}
        assert footprint.down_bytes == len(safetensors.torch.save(sent))


@pytest.mark.parametrize("family", list(CONFIGS))
def test_the_live_counter_sees_what_torchs_allocator_sees(family: str) -> None:
    # A thread of the fused kernel takes up to 1.3 MB for itself and gives it back inside, and some CPUs'
    # bf16 products 5 KB, which no dispatcher sees: the cases have activations beside which that is little.
    torch.set_num_threads(1)
    eager = [case for case in cases(family) if case.shape.attention == "eager"][:3]
    fused = next(case for case in cases(family) if case.assignment.dtype == "fp32")
    lora = replace(fused.assignment, recompute=False, adapter=lora_everywhere(family))
    for case in [
        *(at_shape(case, rows=16, tokens=256) for case in eager),
        at_shape(replace(fused, assignment=lora), rows=32, tokens=512, attention="memory_efficient"),
    ]:
        workshop, work = real(case)
        audit(workshop, work)  # first use of a kernel allocates what it keeps
        reported, counted = allocator_peak(work, workshop)
        assert reported == pytest.approx(counted, rel=0.005), case


def test_an_a_that_nobody_trains_is_held_once_and_never_sent() -> None:
    case = Case(
        family="bert",
        assignment=Assignment(blocks=tuple(range(DEEP)), adapter=lora_everywhere("bert"), batch_size=2),
        shape=WorkShape(rows=2, tokens=32, attention="memory_efficient"),
        optimizer=LocalOptimizer(optim="adamw"),
    )
    frozen = replace(case, assignment=b_alone(case.assignment))
    both, b_only = (tracer(c, real(c)[0])(c.assignment, c.shape) for c in (case, frozen))
    # A of rank 4 on 32 inputs, at query and value of 4 blocks.
    a_numbers = 8 * 4 * 32
    assert both.trained_params - b_only.trained_params == a_numbers
    # Besides the one that is needed: a copy to train, a gradient and AdamW's two moments.
    assert both.peak_bytes - b_only.peak_bytes >= 3 * 4 * a_numbers
    assert both.terms.optimizer - b_only.terms.optimizer >= 2 * 4 * a_numbers
    # Less than the numbers themselves, for the names of tensors are not sent either.
    assert both.up_bytes - b_only.up_bytes > 4 * a_numbers
    assert b_only.up_bytes == b_only.down_bytes
    # Its gradient is not computed: of four products a site's backward has three.
    assert b_only.backward_flops < both.backward_flops
    assert b_only.forward_flops == both.forward_flops


def at_shape(case: Case, rows: int, tokens: int, attention: Attention | None = None) -> Case:
    shape = WorkShape(rows=rows, tokens=tokens, attention=attention or case.shape.attention)
    return replace(case, shape=shape, assignment=replace(case.assignment, batch_size=rows))


def lora_everywhere(family: str) -> Lora:
    return Lora(ranks=(4,) * DEEP, targets=TARGETS[family])


def test_depths_beyond_three_blocks_of_a_kind_are_extrapolated_to_the_byte() -> None:
    deep = LlamaConfig(**{**LONG, "num_hidden_layers": 12}, num_key_value_heads=2)
    case = next(iter(cases("llama")))
    workshop, _ = real(case)
    for more in ({}, {"recompute": True}, {"int8_activations": 5}):
        ranks = (0,) * 5 + (8,) * 6 + (2,)
        lora = Lora(ranks=ranks, targets=TARGETS["llama"])
        assignment = Assignment(blocks=tuple(range(12)), adapter=lora, batch_size=2, **more)
        shape = WorkShape(rows=2, tokens=64, attention="eager")
        deepened = replace(
            subject(case, workshop), anatomies={"fp32": dissect(empty_backbone(deep, "causal_lm"))}
        )
        traced = FootprintTracer(deepened, None)
        whole = traced._count("whole", assignment, shape)
        footprint = traced(assignment, shape)
        assert footprint.peak_bytes == sum(whole.peak().values())
        assert footprint.forward_flops == whole.forward_flops
        assert footprint.backward_flops == whole.backward_flops
        assert footprint.moved_bytes == sum(moved * times for (_, moved), times in whole.ops.items())


def test_a_forward_costs_two_flops_per_weight_and_token_in_every_linear() -> None:
    # Hand-worked: four blocks of q 16x16, k 16x8, v 16x8, o 16x16, gate, up and down 16x24; head 16x48.
    workshop = build("llama", [4], LocalOptimizer())
    case = Case(family="llama", assignment=assign("llama", 1, 1, batch_size=1),
                shape=WorkShape(rows=1, tokens=8, attention="eager"), optimizer=LocalOptimizer())  # fmt: skip
    shops = replace(
        subject(case, workshop),
        anatomies={"fp32": dissect(empty_backbone(shop.CONFIGS["llama"], "causal_lm"))},
    )
    footprint: Footprint = FootprintTracer(shops, None)(case.assignment, case.shape)
    linears = BLOCKS * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24) + 16 * 48
    adapters = (16 + 16) + (16 + 8)  # rank 1 on q_proj and v_proj of the top block
    scores = BLOCKS * 2 * 4 * 8 * 8 * 4  # q k^T and weights v: 4 heads, 8 by 8 tokens, width 4
    assert footprint.forward_flops == 2 * 8 * (linears + adapters) + 2 * scores


def test_rank_is_a_weak_memory_knob_and_depth_and_recomputation_are_strong_ones() -> None:
    # Claim of section 5.2 of Korthikanti et al. (2205.05198) applied to LoRA: activations dominate.
    case = next(iter(cases("llama")))
    workshop, _ = real(case)
    traced = tracer(case, workshop)
    shape = WorkShape(rows=4, tokens=256, attention="memory_efficient")

    def peak(depth: int, rank: int, recompute: bool = False) -> int:
        ranks = (0,) * (DEEP - depth) + (rank,) * depth
        lora = Lora(ranks=ranks, targets=("q_proj", "v_proj"))
        return traced(
            Assignment(blocks=tuple(range(DEEP)), adapter=lora, recompute=recompute, batch_size=4), shape
        ).peak_bytes

    assert peak(DEEP, 1) > 0.9 * peak(DEEP, 8)
    assert peak(1, 8) < 0.6 * peak(DEEP, 8)
    assert peak(DEEP, 8, recompute=True) < 0.6 * peak(DEEP, 8)


def test_a_footprint_is_kept_on_disk_by_content(tmp_path: Path) -> None:
    case = next(iter(cases("bert")))
    workshop, _ = real(case)
    first = tracer(case, workshop, tmp_path)(case.assignment, case.shape)
    (kept,) = tmp_path.glob("*.json")
    written = kept.stat().st_mtime_ns
    again = tracer(case, workshop, tmp_path)(case.assignment, case.shape)
    assert (again.peak_bytes, again.moved_bytes) == (first.peak_bytes, first.moved_bytes)
    assert kept.stat().st_mtime_ns == written
    other = replace(case, optimizer=LocalOptimizer(optim="sgd", momentum=0.9))
    tracer(other, workshop, tmp_path)(case.assignment, case.shape)
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_client_over_its_memory_is_stopped_where_it_passes_it() -> None:
    case = next(iter(cases("gpt2")))
    workshop, work = real(case)
    free = audit(workshop, work)
    assert not free.over_limit
    fitting = audit(workshop, work, limit_bytes=free.peak_bytes)
    assert not fitting.over_limit
    stopped = audit(workshop, work, limit_bytes=free.peak_bytes - 1)
    assert stopped.over_limit
    assert stopped.peak_bytes <= free.peak_bytes
    # The next client finds the backbone as it was.
    assert audit(workshop, work).peak_bytes == free.peak_bytes


def test_the_audit_of_a_long_job_needs_its_longest_batch_only() -> None:
    workshop = build("bert", [40], LocalOptimizer())
    work = job(workshop, "bert", 0, assign("bert", 4, 4))
    counter = ByteCounter()
    counter.hold(weights(workshop.backbones["fp32"].anatomy, work.assignment), "weights")
    with counter:
        train_pack(workshop, [work], recompute=True)
    assert audit(workshop, work).peak_bytes == pytest.approx(counter.peak, rel=0.02)
