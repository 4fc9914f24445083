"""What one update gives away: all where it must, less with few ranks or many rows, or nothing."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from fedray.adapter import WEIGHTS, Adapter
from fedray.attacks.updates import classes_in, read_by_head, span_of, span_recovery, words_in
from fedray.errors import ConfigError
from fedray.trained import Weights
from fedray.training.own_weights import initial_weights
from fedray.training.train import train_pack
from shop import BLOCKS, CONFIGS, LABELS, TARGETS, assign, build, job
from split_shop import SGD

STEP = replace(SGD, learning_rate=0.5)


def stepped(family, rank, rows, optimizer=STEP, **changes):
    """A client's gradient, up to a factor, after one step on all its rows; with its workshop and batch."""
    workshop = build(family, [rows], optimizer)
    given = job(workshop, family, 0, assign(family, BLOCKS, rank, batch_size=rows, max_steps=1))
    given = replace(given, **changes)
    (update,) = train_pack(workshop, [given])
    own = workshop.partitions[0]
    batch = workshop.pool.batch(own, int(workshop.pool.lengths[own].max()))
    return workshop, {name: -t for name, t in update.delta.tensors().items()}, batch


def recovered(family, rank, rows, **changes):
    workshop, gradient, batch = stepped(family, rank, rows, **changes)
    anatomy = workshop.backbones["fp32"].anatomy
    sites = anatomy.sites(0, TARGETS[family])
    return span_recovery(anatomy, sites[0], [gradient[f"{site}.lora_A"] for site in sites], batch)


def test_what_a_linear_read_is_the_ratio_of_its_gradients_by_hand():
    # Cross entropy's gradient is (0.2, 0.5, -0.7), and the head read (3, -1).
    errors, read = torch.tensor([0.2, 0.5, -0.7]), torch.tensor([3.0, -1.0])
    assert torch.allclose(read_by_head(errors[:, None] * read, errors), read)
    assert classes_in(errors) == (2,)


def test_of_one_row_a_heads_update_gives_the_label_and_what_the_head_read():
    workshop, gradient, batch = stepped("bert", 2, 1)
    assert classes_in(gradient["head.bias"]) == (int(batch["label"][0]),)
    anatomy = workshop.backbones["fp32"].anatomy
    sent = job(workshop, "bert", 0, assign("bert", BLOCKS, 2)).sent
    # The mean of the last hidden states, by transformers' own forward with the adapter merged in.
    for site, factors in sent.factors.items():
        linear = anatomy.backbone.get_submodule(site)
        linear.weight.data += factors.scale * factors.b @ factors.a
    plain = AutoModel.from_config(CONFIGS["bert"], add_pooling_layer=False).eval()
    plain.load_state_dict(anatomy.backbone.state_dict())
    with torch.no_grad():
        hidden = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    found = read_by_head(gradient["head.weight"], gradient["head.bias"])
    assert torch.allclose(found, hidden.mean(1)[0], rtol=1e-3, atol=1e-4)


def test_of_several_rows_no_label_is_named_that_is_not_there():
    for rows in (2, 3, 8):
        _, gradient, batch = stepped("bert", 2, rows)
        named = set(classes_in(gradient["head.bias"]))
        assert named
        assert named <= set(batch["label"].tolist())
        assert len(named) < LABELS or rows == 8


def test_a_trained_embedding_gives_away_which_words_a_batch_has_however_many_rows():
    whole = Weights(part="all", trained=(True,) * BLOCKS, stem=True)
    workshop = build("bert", [6], STEP)
    given = job(workshop, "bert", 0, assign("bert", BLOCKS, 2, batch_size=6, max_steps=1))
    full = replace(given.assignment, adapter=whole)
    weights = initial_weights(workshop.backbones["fp32"].anatomy, [full], 0)
    sent = Adapter(head=given.sent.head, weights=weights)
    (update,) = train_pack(workshop, [replace(given, assignment=full, sent=sent)])
    table = update.delta.tensors()[f"{WEIGHTS}embeddings.word_embeddings.weight"]
    own = workshop.partitions[0]
    batch = workshop.pool.batch(own, 24)
    assert words_in(table) == tuple(sorted(set(batch["input_ids"][batch["attention_mask"].bool()].tolist())))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_row_of_fewer_tokens_than_ranks_is_read_out_of_the_factors_and_with_few_ranks_it_is_not(family):
    # 13 tokens in a width of 16.
    most, least = recovered(family, 16, 1), recovered(family, 2, 1)
    assert most.share > 0.9
    assert least.share < 0.5
    assert least.dimensions <= 4


def test_many_rows_hide_words_behind_each_other():
    # 69 tokens in a width of 16: every word lies in the span, so none stands out.
    found = recovered("bert", 16, 4)
    assert found.dimensions == 16
    assert found.share < 0.2


def test_before_b_has_moved_nothing_shows_in_a_and_adamws_first_step_hides_the_span():
    workshop = build("bert", [1], STEP)
    sent = job(workshop, "bert", 0, assign("bert", BLOCKS, 16)).sent
    fresh = replace(sent, factors={s: replace(f, b=torch.zeros_like(f.b)) for s, f in sent.factors.items()})
    assert recovered("bert", 16, 1, sent=fresh).dimensions == 0
    signs = recovered("bert", 16, 1, optimizer=replace(STEP, optim="adamw", learning_rate=1e-2))
    assert signs.share < 0.5


def test_a_span_is_that_of_the_inputs_whatever_each_was_multiplied_by():
    torch.manual_seed(0)
    inputs, errors = torch.randn(3, 10), torch.randn(7, 3)
    basis = span_of([errors @ inputs, 1e-3 * torch.randn(2, 3) @ inputs]).float()
    assert basis.shape == (3, 10)
    assert torch.allclose(inputs @ basis.T @ basis, inputs, atol=1e-4)


def test_images_and_other_blocks_are_refused():
    workshop = build("vit", [2], STEP)
    anatomy = workshop.backbones["fp32"].anatomy
    with pytest.raises(ConfigError, match="no words go into this vit model"):
        span_recovery(anatomy, "layers.0.x", [], {})
    anatomy = build("bert", [2], STEP).backbones["fp32"].anatomy
    site = "encoder.layer.1.attention.self.query"
    with pytest.raises(ConfigError, match=r"encoder\.layer\.0\.\*, and encoder\.layer\.1.* is of another"):
        span_recovery(anatomy, site, [], {})
