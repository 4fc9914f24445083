"""Footprints under a cut against real clients and a real server: live bytes, FLOPs, what crosses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from fedray.assignment import ATTENTIONS, Assignment, Attention, Lora
from fedray.cost import WorkShape
from fedray.errors import TrainingError
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.training.audit import audit
from fedray.training.footprint import FootprintTracer
from fedray.training.optimizer import LocalOptimizer
from fedray.training.short_steps import shortened
from fedray.training.task import Batch, Forward
from fedray.training.tasks.image_classification import ImageClassification
from fedray.training.tasks.text_classification import TextClassification
from lone import CONFIGS, DEEP, LONG, Case, allocator_peak, real, subject, tracer
from shop import LABELS, TARGETS

CODECS = ("none", "int8", "bf16", "int4", "top10")
CUTS = ((0, 0), (1, 0), (2, 1), (3, 0), (0, 1), (1, 2), (2, 0), (1, 1))


def cases(family: str) -> Iterator[Case]:
    random = np.random.default_rng(sum(map(ord, family)))
    for i, (cut, tail) in enumerate(CUTS):
        ranks = [int(r) for r in random.choice([0, 1, 4, 16], DEEP)]
        if not any(ranks):
            ranks[-1] = 2
        own = [*ranks[:cut], *ranks[DEEP - tail :]]
        rows, tokens = int(random.integers(1, 4)), (32, 256)[i % 2]
        yield Case(
            family=family,
            assignment=Assignment(
                blocks=tuple(range(cut)),
                split=True,
                tail=tail,
                adapter=Lora(ranks=tuple(ranks), targets=TARGETS[family], scale=2.0),
                dtype="bf16" if i % 4 == 3 else "fp32",
                cut_codec=CODECS[int(random.integers(len(CODECS)))],
                recompute=any(own) and bool(random.integers(2)),
                batch_size=rows,
            ),
            shape=WorkShape(rows=rows, tokens=tokens, attention=ATTENTIONS[int(random.integers(2))]),
            optimizer=LocalOptimizer(optim="adamw" if i % 2 else "sgd", max_grad_norm=1.0 if i % 2 else None),
        )


@pytest.mark.parametrize("family", list(CONFIGS))
def test_the_peak_traced_of_a_client_under_a_cut_is_the_audited_one(family: str) -> None:
    for case in cases(family):
        workshop, work = real(case)
        footprint = tracer(case, workshop)(case.assignment, case.shape)
        counted = audit(workshop, work)
        assert footprint.peak_bytes == pytest.approx(counted.peak_bytes, rel=0.02), case
        assert footprint.terms.total == footprint.peak_bytes


def large(case: Case, attention: Attention, codec: str) -> Case:
    """So large that a thread's own scratch, which no dispatcher sees, is little beside it."""
    shape = WorkShape(rows=32, tokens=256, attention=attention)
    plain = replace(case.assignment, dtype="fp32", recompute=False, batch_size=32, cut_codec=codec)
    return replace(case, assignment=plain, shape=shape)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_the_live_counter_sees_what_torchs_allocator_sees_of_a_client_under_a_cut(family: str) -> None:
    torch.set_num_threads(1)
    some = [case for case in cases(family) if case.assignment.gradient_comes_down][:2]
    for case, attention, codec in zip(some, ATTENTIONS, ("bf16", "none"), strict=True):
        workshop, work = real(large(case, attention, codec))
        audit(workshop, work)  # first use of a kernel allocates what it keeps
        reported, counted = allocator_peak(work, workshop)
        assert reported == pytest.approx(counted, rel=0.005), case


@pytest.mark.parametrize("family", list(CONFIGS))
def test_both_sides_of_a_cut_do_the_arithmetic_of_the_whole_model(family: str) -> None:
    for case in cases(family):
        workshop, _ = real(case)
        a = case.assignment
        whole = replace(a, blocks=tuple(range(DEEP)), split=False, tail=0, cut_codec="none")
        shape = replace(case.shape, attention="memory_efficient")
        above = replace(subject(case, workshop), server_recompute=a.recompute)
        traced = FootprintTracer(above, None)
        below, alone = traced(a, shape), traced(whole, shape)
        assert below.server is not None
        total = below.forward_flops + below.backward_flops + below.server.flops
        if any(a.adapter.ranks[: DEEP - a.tail]):
            assert total == pytest.approx(alone.forward_flops + alone.backward_flops, rel=0.01), case
        else:  # a tail sends its gradient up even where nobody below trains
            assert total > alone.forward_flops + alone.backward_flops
        assert below.trained_params == alone.trained_params


def test_depths_on_both_sides_of_a_cut_are_extrapolated_to_the_byte() -> None:
    deep = LlamaConfig(**{**LONG, "num_hidden_layers": 20}, num_key_value_heads=2)
    case = next(cases("llama"))
    workshop, _ = real(case)
    shape = WorkShape(rows=2, tokens=64, attention="eager")
    for recompute, codec, ranks in (
        (False, "none", (0,) * 2 + (8,) * 4 + (2,) * 3 + (4,) * 7 + (4,) * 4),
        (True, "int8", (1,) * 5 + (0,) + (8,) * 5 + (0,) * 4 + (2,) * 5),
        (True, "top10", (0,) * 15 + (2,) * 5),
    ):
        assignment = Assignment(
            blocks=tuple(range(6)),
            split=True,
            tail=4,
            cut_codec=codec,
            adapter=Lora(ranks=ranks, targets=TARGETS["llama"]),
            recompute=recompute,
            batch_size=2,
        )
        deepened = replace(
            subject(case, workshop),
            anatomies={"fp32": dissect(empty_backbone(deep, "causal_lm"))},
            server_attention="eager",
        )
        traced = FootprintTracer(deepened, None)
        footprint = traced(assignment, shape)
        client = traced._count("client", assignment, shape)
        assert footprint.peak_bytes == sum(client.peak().values())
        assert footprint.forward_flops == client.forward_flops
        assert footprint.backward_flops == client.turn_flops + client.backward_flops
        assert footprint.turn_flops == client.turn_flops
        assert footprint.moved_bytes == sum(moved * times for (_, moved), times in client.ops.items())
        server = traced._count("server", assignment, shape)
        assert footprint.server is not None
        assert footprint.server.flops == server.forward_flops + server.backward_flops
        assert footprint.server.activation_bytes == max(
            terms["activations"] + terms["logits"] for terms in server.phases.values()
        )


def placed(case: Case, cut: int, tail: int, ranks: tuple[int, ...], **changes: object) -> Assignment:
    lora = Lora(ranks=ranks, targets=TARGETS[case.family])
    plain = Assignment(blocks=tuple(range(cut)), split=True, tail=tail, adapter=lora, batch_size=2)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_client_holds_the_stem_and_its_own_blocks_and_the_head_only_under_a_tail() -> None:
    # By hand: a block of this Llama is q and o of 32x32, k and v of 32x16, three of 32x64, two norms.
    block = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    stem, head = 4 * (96 * 32 + 2 * 4), 4 * (96 * 32 + 32)  # embeddings and rotary buffers; lm_head and norm
    case = next(cases("llama"))
    traced = tracer(case, real(case)[0])
    held = {
        (cut, tail): traced(placed(case, cut, tail, (1,) * DEEP), case.shape).held_bytes
        for cut, tail in ((0, 0), (2, 0), (1, 2))
    }
    assert held[0, 0] == {"stem": stem}
    assert held[2, 0] == {"stem": stem, "block.0": block, "block.1": block}
    assert held[1, 2] == {"stem": stem, "block.0": block, "block.2": block, "block.3": block, "head": head}


def test_only_the_clients_share_of_an_adapter_crosses_with_the_update() -> None:
    case = next(cases("llama"))
    traced = tracer(case, real(case)[0])
    below, both = (4, 4, 0, 0), (4, 4, 8, 8)
    few, many = (traced(placed(case, 2, 0, ranks), case.shape) for ranks in (below, both))
    assert (few.up_bytes, few.down_bytes) == (many.up_bytes, many.down_bytes)
    # q_proj 32 to 32 and v_proj 32 to 16, two blocks on each side.
    assert few.trained_params == 2 * 4 * (32 + 32 + 32 + 16)
    assert many.trained_params == few.trained_params + 2 * 8 * (32 + 32 + 32 + 16)
    nothing = traced(placed(case, 2, 0, (0, 0, 8, 8)), case.shape)
    assert (nothing.up_bytes, nothing.down_bytes) == (0, 0)


def test_a_frozen_bottom_runs_no_backward_and_keeps_no_activations() -> None:
    case = next(cases("llama"))
    traced = tracer(case, real(case)[0])
    shape = WorkShape(rows=4, tokens=256, attention="memory_efficient")
    frozen, trained = (traced(placed(case, 3, 0, ranks), shape) for ranks in ((0, 0, 0, 4), (4, 0, 0, 4)))
    assert frozen.backward_flops == 0 < trained.backward_flops
    assert frozen.peak_bytes < 0.5 * trained.peak_bytes
    assert frozen.crossing is not None
    assert frozen.crossing.kept
    assert frozen.crossing.num_messages == 1


def test_a_tail_recomputes_even_where_nothing_below_the_cut_is_trained() -> None:
    case = next(cases("bert"))
    shape = WorkShape(rows=2, tokens=256, attention="eager")
    peaks = {}
    for recompute in (False, True):
        alone = replace(case, assignment=placed(case, 1, 2, (0, 0, 0, 2), recompute=recompute), shape=shape)
        workshop, work = real(alone)
        peaks[recompute] = tracer(alone, workshop)(alone.assignment, shape).peak_bytes
        assert peaks[recompute] == pytest.approx(audit(workshop, work).peak_bytes, rel=0.02)
    assert peaks[True] < 0.8 * peaks[False]


def test_entries_of_one_side_share_a_trace_and_both_sides_are_kept_on_disk(tmp_path: Path) -> None:
    case = next(cases("gpt2"))
    workshop, _ = real(case)
    first = tracer(case, workshop, tmp_path)(case.assignment, case.shape)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(kept) == 2
    again = tracer(case, workshop, tmp_path)(case.assignment, case.shape)
    assert (again.peak_bytes, again.crossing, again.server) == (
        first.peak_bytes,
        first.crossing,
        first.server,
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == kept
    # The server's ranks are nothing to the client, and the client's nothing to the server.
    a = placed(case, 2, 0, (4, 4, 1, 8))
    for side, other in (("client", (4, 4, 2, 2)), ("server", (1, 8, 1, 8))):
        assert shortened(side, a, DEEP, (0, 1)) == shortened(side, placed(case, 2, 0, other), DEEP, (0, 1))


def test_an_audit_ends_a_client_under_a_cut_at_its_memory() -> None:
    case = list(cases("qwen3"))[5]
    workshop, work = real(case)
    free = audit(workshop, work)
    assert not audit(workshop, work, limit_bytes=free.peak_bytes).over_limit
    assert audit(workshop, work, limit_bytes=free.peak_bytes - 1).over_limit
    assert audit(workshop, work).peak_bytes == free.peak_bytes


class Preferring(TextClassification):
    """A loss against the model without its adapter, as DPO's."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        return super().loss(forward, batch) - forward.without_adapter(batch).sum(1)


def test_a_loss_that_needs_the_whole_model_is_refused_under_any_cut() -> None:
    case = next(cases("bert"))
    workshop, _ = real(case)
    task = Preferring(classes=list(range(LABELS)))
    traced = FootprintTracer(replace(subject(case, workshop), task=task), None)
    for tail in (0, 1):
        with pytest.raises(TrainingError, match="no side has it whole; choose another task, or give no cuts"):
            traced(placed(case, 1, tail, (1,) * DEEP), case.shape)


class Redrawing(ImageClassification):
    """Asks for the pixels, which stay with the client."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        return (forward(batch)[:, 0] - batch["pixel_values"].flatten(1).mean(1)).square()


def test_a_loss_that_reads_a_whole_image_is_refused_under_a_cut() -> None:
    case = next(cases("vit"))
    workshop, _ = real(case)
    traced = FootprintTracer(replace(subject(case, workshop), task=Redrawing(classes=[0, 1])), None)
    with pytest.raises(TrainingError, match=r"reads pixel_values, an array a row, .* or give no cuts"):
        traced(placed(case, 1, 0, (1,) * DEEP), case.shape)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_loss_at_the_cut_is_traced_with_its_own_head(family: str) -> None:
    case = next(cases(family))
    for ranks, recompute in (((1, 4, 0, 0), False), ((2, 2, 8, 8), True)):
        a = placed(case, 2, 0, ranks, recompute=recompute, local_loss=True, cut_codec="int8")
        alone = replace(case, assignment=a, shape=WorkShape(rows=2, tokens=256, attention="eager"))
        workshop, work = real(alone)
        traced = tracer(alone, workshop)
        footprint = traced(a, alone.shape)
        assert footprint.peak_bytes == pytest.approx(audit(workshop, work).peak_bytes, rel=0.02)
        across = traced(replace(a, local_loss=False), alone.shape)
        # A head of five labels on 32 numbers more, forward and backward of its weight and input, on two rows.
        assert footprint.trained_params == across.trained_params + LABELS * 33
        assert footprint.forward_flops == across.forward_flops
        assert footprint.backward_flops == across.backward_flops + 3 * 2 * 2 * LABELS * 32
        assert footprint.crossing == replace(
            across.crossing,
            num_messages=1,
            down_bytes_per_token=0,
            up_bytes_per_step=0,
            down_bytes_per_step=0,
        )
        # The server does not go back below its lowest adapter.
        assert footprint.server.flops < across.server.flops
