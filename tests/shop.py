"""A small shop: tiny models of each family, rows of unlike length, and jobs on them."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    ViTConfig,
)

from fedray.adapter import Adapter
from fedray.assignment import Assignment, Lora, lora_on_top
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.training.data import Encoded
from fedray.training.job import Job
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import Backbone
from fedray.training.shapes import initial_adapter
from fedray.training.shares import with_own_heads
from fedray.training.task import Task
from fedray.training.tasks.causal_lm import CausalLm
from fedray.training.tasks.image_classification import ImageClassification
from fedray.training.tasks.text_classification import TextClassification
from fedray.training.train import Workshop

# Where the shop's work is computed: benchmarks/gpu_checks.py gives these tests an accelerator.
DEVICE = os.environ.get("FEDRAY_TEST_DEVICE", "cpu")
BLOCKS, VOCABULARY, LABELS = 4, 48, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WIDE = {**SIZES, "intermediate_size": 24}
VIT = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "patch_size": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(**SIZES),
    "bert": BertConfig(**WIDE),
    # 23 patches in a row, behind a class token: as many tokens as other families' longest rows have here.
    "vit": ViTConfig(**VIT, num_hidden_layers=BLOCKS, image_size=[2, 46]),
}
TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "down_proj"),
    "gpt2": ("c_attn",),
    "bert": ("query", "value"),
    "vit": ("q_proj", "v_proj"),
}
TASKS: dict[str, Task] = {name: CausalLm() for name in ("llama", "qwen3", "gpt2")}
TASKS["bert"] = TextClassification(classes=list(range(LABELS)))
TASKS["vit"] = ImageClassification(classes=list(range(LABELS)))


def num_labels(family: str) -> int:
    """Of the family's task."""
    return LABELS if TASKS[family].head == "classification" else 0


def images(config: PreTrainedConfig, num_rows: int) -> Encoded:
    """Random images of a model's size with a label each, their bytes from -1 to 1."""
    random = np.random.default_rng(1)
    height, width = config.image_size
    tokens = height // config.patch_size * (width // config.patch_size) + 1
    shape = num_rows, config.num_channels, height, width
    return Encoded(
        lengths=np.full(num_rows, tokens),
        starts=np.arange(num_rows) * tokens,
        lists={},
        numbers={"label": random.integers(0, LABELS, num_rows).astype(np.int32)},
        pad_id=0,
        arrays={"pixel_values": random.integers(0, 256, shape, np.uint8)},
        levels={"pixel_values": np.tile(np.linspace(-1, 1, 256, dtype=np.float32), (shape[1], 1))},
    )


def encoded(seed: int, num_rows: int = 60, longest: int = 24) -> Encoded:
    """Random rows of 4 to ``longest`` tokens with a label each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, longest + 1, num_rows)
    return Encoded(
        lengths=lengths,
        starts=np.cumsum(lengths) - lengths,
        lists={"input_ids": random.integers(1, VOCABULARY, lengths.sum()).astype(np.int32)},
        numbers={"label": random.integers(0, LABELS, num_rows).astype(np.int32)},
        pad_id=0,
    )


def build(
    family: str,
    sizes: Sequence[int],
    optimizer: LocalOptimizer,
    *,
    task: Task | None = None,
    device: str = DEVICE,
) -> Workshop:
    """A workshop whose client k owns ``sizes[k]`` rows."""
    torch.manual_seed(0)
    model = drawn(CONFIGS[family], family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bounds = np.cumsum([0, *sizes])
    return Workshop(
        backbones={"fp32": Backbone.of(dissect(model.to(device)), [TARGETS[family]])},
        task=task or TASKS[family],
        pool=images(CONFIGS[family], bounds[-1]) if family == "vit" else encoded(1, int(bounds[-1])),
        partitions=tuple(np.arange(a, b) for a, b in itertools.pairwise(bounds)),
        optimizer=optimizer,
        max_length=24,
        device=device,
    )


def drawn(config: PreTrainedConfig, family: str) -> PreTrainedModel:
    """A model with weights as transformers draws them, of the modules that fedray holds."""
    kind = type(empty_backbone(config, TASKS[family].head))
    model = kind(config, **({"add_pooling_layer": False} if family in ("bert", "vit") else {}))
    return model.requires_grad_(False).eval()


def start(workshop: Workshop, family: str, assignment: Assignment, seed: int = 0) -> Adapter:
    """An adapter of the assignment's shapes whose B is not zero, so that every factor has a gradient."""
    anatomy = workshop.backbones["fp32"].anatomy
    first = with_own_heads(assignment, initial_adapter(anatomy, [assignment], num_labels(family), seed))
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        factors={
            site: replace(f, b=0.1 * torch.randn(f.b.shape, generator=generator))
            for site, f in first.factors.items()
        },
        head=first.head,
    )


def b_alone(assignment: Assignment) -> Assignment:
    """The same with every A left as it was drawn."""
    assert isinstance(assignment.adapter, Lora)
    return replace(assignment, adapter=replace(assignment.adapter, train_a=False))


def job(workshop: Workshop, family: str, client: int, assignment: Assignment) -> Job:
    """A job of round 1 for one client."""
    rows = len(workshop.partitions[client])
    return Job(
        round=1,
        client_id=client,
        dispatch=0,
        version=0,
        seed=7,
        assignment=assignment,
        attention="memory_efficient",
        sent=start(workshop, family, assignment, client),
        num_rows=rows,
        num_steps=assignment.num_steps(rows),
        tokens=24,
    )


def assign(family: str, depth: int, rank: int, **changes: object) -> Assignment:
    """A rank on the top ``depth`` blocks."""
    lora: Lora = lora_on_top(BLOCKS, depth, rank, targets=TARGETS[family])
    return replace(Assignment(blocks=tuple(range(BLOCKS)), adapter=lora, batch_size=4), **changes)  # type: ignore[arg-type]
