"""Clients alone: four blocks, rows as long as a test asks, and a tracer of the same on the meta device."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config, ViTConfig

from fedray.assignment import Assignment, Lora
from fedray.cost import WorkShape
from fedray.model.anatomy import dissect
from fedray.model.load import TORCH_DTYPES, empty_backbone
from fedray.training.audit import audit
from fedray.training.data import FILLER, Encoded
from fedray.training.footprint import FootprintTracer, TraceSubject
from fedray.training.held import weights
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import pretrained, trained_names
from fedray.training.packed import Backbone
from fedray.training.shapes import initial_adapter
from fedray.training.shares import client_share, with_own_heads
from fedray.training.train import Workshop
from shop import DEVICE, LABELS, TASKS, VOCABULARY, drawn, images, num_labels

DEEP = 4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": DEEP,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
LONG = {**SIZES, "max_position_embeddings": 1024, "intermediate_size": 64}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**LONG, num_key_value_heads=2),
    "qwen3": Qwen3Config(**LONG, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(**SIZES, n_positions=1024),
    "bert": BertConfig(**LONG),
    "vit": ViTConfig(
        hidden_size=32, num_hidden_layers=DEEP, num_attention_heads=4, intermediate_size=64, patch_size=2
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    family: str
    assignment: Assignment
    shape: WorkShape
    optimizer: LocalOptimizer


def config_of(case: Case) -> PreTrainedConfig:
    """The family's, for images of as many patches as the case has tokens beside the class token."""
    config = copy.deepcopy(CONFIGS[case.family])
    if case.family == "vit":
        config.image_size = [2, 2 * (case.shape.tokens - 1)]
    return config


def real(case: Case, device: str = DEVICE) -> tuple[Workshop, Job]:
    """The case's client: real weights, rows of exactly the shape's tokens."""
    torch.manual_seed(0)
    task, dtype = TASKS[case.family], case.assignment.dtype
    config = config_of(case)
    model = drawn(config, case.family).to(device, TORCH_DTYPES[dtype])
    rows, tokens = case.shape.rows, case.shape.tokens
    targets = case.assignment.adapter.targets if isinstance(case.assignment.adapter, Lora) else ()
    workshop = Workshop(
        backbones={dtype: Backbone.of(dissect(model), [targets])},
        task=task,
        pool=images(config, rows) if case.family == "vit" else texts(rows, tokens),
        partitions=(np.arange(rows),),
        optimizer=case.optimizer,
        max_length=1024,
        device=device,
    )
    anatomy = workshop.backbones[dtype].anatomy
    own = pretrained(anatomy.model, trained_names(anatomy, case.assignment))
    first = initial_adapter(anatomy, [case.assignment], num_labels(case.family), 0)
    sent = replace(with_own_heads(case.assignment, first), weights=own)
    return workshop, Job(
        round=1, client_id=0, dispatch=0, version=0, seed=0, assignment=case.assignment,
        attention=case.shape.attention, sent=sent, num_rows=rows, num_steps=1, tokens=tokens,
    )  # fmt: skip


def texts(rows: int, tokens: int) -> Encoded:
    """Rows of exactly so many random tokens with a label each."""
    random = np.random.default_rng(0)
    return Encoded(
        lengths=np.full(rows, tokens),
        starts=np.arange(rows) * tokens,
        lists={"input_ids": random.integers(1, VOCABULARY, rows * tokens).astype(np.int32)},
        numbers={"label": random.integers(0, LABELS, rows).astype(np.int32)},
        pad_id=0,
    )


def subject(case: Case, workshop: Workshop) -> TraceSubject:
    """The case's model on the meta device, with batches of the workshop's features."""
    task, dtype = TASKS[case.family], case.assignment.dtype

    def meta_batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
        return {k: t.to("meta") for k, t in workshop.pool.batch(np.full(rows, FILLER), tokens).items()}

    return TraceSubject(
        anatomies={dtype: dissect(empty_backbone(config_of(case), task.head, dtype))},
        task=task,
        num_labels=num_labels(case.family),
        optimizer=case.optimizer,
        meta_batch=meta_batch,
    )


def tracer(case: Case, workshop: Workshop, cache_dir: Path | None = None) -> FootprintTracer:
    return FootprintTracer(subject(case, workshop), cache_dir)


def allocator_peak(work: Job, workshop: Workshop) -> tuple[int, int]:
    """Peaks above the start that torch's CPU allocator and the counter report of one run."""
    anatomy = workshop.backbones[work.assignment.dtype].anatomy
    sent = client_share(anatomy, work.assignment, work.sent).tensors().values()
    held = sum(t.numel() * t.element_size() for t in [*sent, *weights(anatomy, work.assignment)])
    # A batch is gathered by numpy: the counter holds it, torch did not allocate it.
    batch = workshop.pool.batch(np.arange(work.num_rows), work.tokens)
    held += sum(t.numel() * t.element_size() for t in batch.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        counted = audit(workshop, work).peak_bytes
    now = most = 0
    assert recorded.profiler is not None
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most, counted - held
