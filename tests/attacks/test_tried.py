"""One update looked into: by whatever of it tells words, and nothing where nothing does."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from fedray.adapter import Adapter
from fedray.attacks.labels import counts_in
from fedray.attacks.tried import words_found
from fedray.attacks.updates import readers
from fedray.trained import Weights
from fedray.training.own_weights import initial_weights
from fedray.training.train import train_pack
from shop import BLOCKS, assign, b_alone, build, job
from split_shop import SGD

STEP = replace(SGD, learning_rate=0.5)


def found(family, sent_of=lambda sent: sent, given=None, weights=None):
    """What one step on one row gives away; the row has 13 tokens, in a width of 16."""
    workshop = build(family, [1], STEP)
    assignment = given or assign(family, BLOCKS, 16, batch_size=1, max_steps=1)
    told = job(workshop, family, 0, assignment if weights is None else assign(family, BLOCKS, 2))
    anatomy = workshop.backbones["fp32"].anatomy
    if weights is not None:
        assignment = replace(assignment, adapter=weights)
        own = initial_weights(anatomy, [assignment], 0)
        told = replace(
            told, assignment=assignment, sent=Adapter(head=told.sent.head, weights=own), num_steps=1
        )
    told = replace(told, sent=sent_of(told.sent))
    (update,) = train_pack(workshop, [told])
    rows = workshop.partitions[0]
    batch = workshop.pool.batch(rows, int(workshop.pool.lengths[rows].max()))
    return words_found(anatomy, told.sent, update.delta, batch)


def with_b_at_zero(sent):
    factors = {site: replace(f, b=torch.zeros_like(f.b)) for site, f in sent.factors.items()}
    return replace(sent, factors=factors)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_words_are_found_by_a_by_b_where_a_has_nothing_and_by_whole_weights(family):
    one = assign(family, BLOCKS, 16, batch_size=1, max_steps=1)
    whole = Weights(part="all", trained=(True,) * BLOCKS)
    assert found(family) > 0.9
    assert found(family, with_b_at_zero) > 0.8
    assert found(family, given=b_alone(one)) > 0.9
    assert found(family, given=one, weights=whole) > 0.9


def test_a_trained_embedding_tells_all_words_and_biases_and_other_blocks_none():
    one = assign("bert", BLOCKS, 16, batch_size=1, max_steps=1)
    stem = Weights(part="all", trained=(True,) * BLOCKS, stem=True)
    assert found("bert", given=one, weights=stem) == 1.0
    assert found("bert", given=one, weights=Weights(part="bias", trained=(True,) * BLOCKS)) == 0.0
    assert found("bert", given=assign("bert", 1, 16, batch_size=1, max_steps=1)) == 0.0


def test_what_enters_the_first_attention_is_read_by_these_linears():
    ends = {
        family: [site.rpartition(".")[2] for site in readers(build(family, [1], STEP).evaluated.anatomy)]
        for family in ("bert", "gpt2", "llama")
    }
    attention = ["q_proj", "k_proj", "v_proj"]
    assert ends == {"bert": ["query", "key", "value"], "gpt2": ["c_attn"], "llama": attention}


def test_labels_of_four_rows_at_a_fresh_head_by_hand():
    # Each class is given a quarter; two rows have the first, one each the next two: 1/4 - counts / 4.
    assert counts_in(torch.tensor([-0.25, 0.0, 0.0, 0.25]), 4).tolist() == [2, 1, 1, 0]
    assert counts_in(7 * torch.tensor([0.2, 0.5, -0.7]), 1).tolist() == [0, 0, 1]


@drawn(st.lists(st.integers(0, 6), min_size=2, max_size=9), st.floats(1e-3, 1e3))
def test_at_a_fresh_head_all_labels_are_told_if_a_class_is_missing_whatever_the_scale(counts, scale):
    truth = torch.tensor([*counts, 0])
    rows = int(truth.sum())
    if not rows:
        return
    gradient = scale * (1 / len(truth) - truth / rows)
    assert counts_in(gradient, rows).tolist() == truth.tolist()
