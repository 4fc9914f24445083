"""Evaluation: every row once, in any chunks, with nothing left behind."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedray.server.passing import PassingHere
from fedray.training.data import bucket
from fedray.training.evaluate import CHUNK_TOKENS, Elsewhere, evaluate_rows, evaluation_chunks, in_order
from fedray.training.optimizer import LocalOptimizer
from fedray.training.tasks.causal_lm import CausalLm
from shop import BLOCKS, assign, build, start


@given(st.lists(st.integers(1, 40) | st.just(5000), min_size=1, max_size=600), st.integers(0, 2**32 - 1))
@example([9] * 500, 0)
@settings(max_examples=60, deadline=None)
def test_chunks_hold_every_row_once_and_no_more_padded_tokens_than_they_may(lengths, seed):
    every = np.array(lengths)
    rows = np.random.default_rng(seed).permutation(len(every))
    chunks = evaluation_chunks(every, rows)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(every)))
    for chunk in chunks:
        padded = len(chunk) * bucket(int(every[chunk].max()), 8, 10_000)
        assert len(chunk) == 1 or padded <= CHUNK_TOKENS
    outputs = [[{"row": int(row)} for row in chunk] for chunk in chunks]
    assert [found["row"] for found in in_order(rows, chunks, outputs)] == rows.tolist()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rows_get_what_they_get_alone(family):
    workshop = build(family, [20, 10], LocalOptimizer())
    adapter = start(workshop, family, assign(family, 3, 4), seed=5)
    rows = np.arange(30)
    together = evaluate_rows(workshop, adapter, rows)
    for row in (0, 7, 29):
        (alone,) = evaluate_rows(workshop, adapter, np.array([row]))
        assert alone["loss"] == pytest.approx(together[row]["loss"], rel=1e-4)
    frozen = evaluate_rows(workshop, start(workshop, family, assign(family, 1, 1), seed=6), rows)
    assert [row["loss"] for row in frozen] != [row["loss"] for row in together]


class Asking(CausalLm):
    """Asks about rows and about their beginnings, with the adapter and without, as who answers would."""

    def outputs(self, forward, batch):
        shorter = {name: tensor[:, :3] if tensor.dim() > 1 else tensor for name, tensor in batch.items()}
        asked = forward(batch)[:, 0, 0], forward(shorter)[:, -1, 0], forward.without_adapter(batch)[:, 0, 0]
        return [{"said": values} for values in zip(*(found.tolist() for found in asked), strict=True)]


def test_a_task_may_ask_a_model_whose_middle_runs_elsewhere_whatever_it_may_ask_a_whole_one():
    workshop = build("llama", [20], LocalOptimizer(), task=Asking())
    adapter = start(workshop, "llama", assign("llama", BLOCKS, 4), seed=5)
    middle = PassingHere(workshop, 2, "memory_efficient")
    rows = np.arange(20)
    parted = evaluate_rows(workshop, adapter, rows, Elsewhere(first=1, end=3, middle=middle))
    whole = evaluate_rows(workshop, adapter, rows)
    for one, other in zip(parted, whole, strict=True):
        assert one["said"] == pytest.approx(other["said"], rel=1e-5, abs=1e-6)
        assert len(set(one["said"])) == 3


def test_evaluation_leaves_no_gradient_and_no_adapter():
    workshop = build("bert", [20], LocalOptimizer())
    adapter = start(workshop, "bert", assign("bert", 4, 2))
    evaluate_rows(workshop, adapter, np.arange(20))
    backbone = workshop.backbones["fp32"]
    assert all(site.factors is None for site in backbone.sites.values())
    assert all(not p.requires_grad and p.grad is None for p in backbone.anatomy.model.parameters())
    assert all(not torch.is_inference(tensor) for tensor in adapter.tensors().values())
