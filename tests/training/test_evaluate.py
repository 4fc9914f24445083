"""Evaluation: every row once, in any chunks, with nothing left behind."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedray.training.data import bucket
from fedray.training.evaluate import CHUNK_TOKENS, evaluate_rows, evaluation_chunks, in_order
from fedray.training.optimizer import LocalOptimizer
from shop import assign, build, start


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


def test_evaluation_leaves_no_gradient_and_no_adapter():
    workshop = build("bert", [20], LocalOptimizer())
    adapter = start(workshop, "bert", assign("bert", 4, 2))
    evaluate_rows(workshop, adapter, np.arange(20))
    backbone = workshop.backbones["fp32"]
    assert all(site.factors is None for site in backbone.sites.values())
    assert all(not p.requires_grad and p.grad is None for p in backbone.anatomy.model.parameters())
    assert all(not torch.is_inference(tensor) for tensor in adapter.tensors().values())
