"""Narrower models: what the whole one computes without the units left out, and ordinary folders."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from fedray.errors import ModelError
from fedray.model.salience import by_salience
from fedray.model.slices import narrowed, places_of, sizes_of
from fedray.training.optimizer import LocalOptimizer
from fedray.width import Width
from shop import build

FAMILIES = ("llama", "qwen3", "gpt2", "bert", "vit")
# What each family's feed-forward part and attention end in: without these columns a unit says nothing.
DOWN = {
    "llama": "down_proj",
    "qwen3": "down_proj",
    "gpt2": "mlp.c_proj",
    "bert": "output.dense",
    "vit": "fc2",
}


def shop_of(family):
    workshop = build(family, [3], LocalOptimizer())
    return workshop.backbones["fp32"].anatomy, workshop.pool.batch(workshop.partitions[0], 24)


def answer(anatomy, batch):
    flow = anatomy.stem(batch[anatomy.family.inputs], batch["attention_mask"])
    hidden = flow.hidden
    for block in range(anatomy.num_blocks):
        hidden = anatomy.block(block, hidden, flow.context)
    return anatomy.head(hidden, flow.context)


def silenced(anatomy, end, kept):
    """The whole model with zeros where these linears read units that are not kept."""
    for name, module in anatomy.model.named_modules():
        if name.endswith(end) and "attention.output" not in name:
            transposed = type(module).__name__ == "Conv1D"
            gone = torch.ones(module.weight.shape[0 if transposed else 1], dtype=torch.bool)
            gone[torch.tensor(kept)] = False
            module.weight.data[gone if transposed else (slice(None), gone)] = 0


def ordered(anatomy):
    order = by_salience(anatomy)
    return replace(anatomy, unit_order=lambda: order), order


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("window", "turn"), [("prefix", 0), ("rolling", 2), ("salient", 0)])
def test_a_narrow_feed_forward_part_is_the_whole_one_with_the_other_units_silent(family, window, turn):
    anatomy, batch = shop_of(family)
    width = Width(share=0.25, window=window, turn=turn)
    for later in anatomy.blocks[1:]:  # so that all blocks put their units in one order
        later.load_state_dict(anatomy.blocks[0].state_dict())
    anatomy, order = ordered(anatomy)
    narrow = answer(narrowed(anatomy, width), batch)
    silenced(anatomy, DOWN[family], width.indices("ffn", sizes_of(anatomy).ffn, 0, order))
    torch.testing.assert_close(narrow, answer(anatomy, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_fewer_heads_are_whole_groups_of_queries_with_their_keys_and_values(family):
    anatomy, batch = shop_of(family)
    sizes = sizes_of(anatomy)
    assert (sizes.heads, sizes.kv_heads) == (4, 2)
    width = Width(share=0.5, axes=("heads",), window="rolling", turn=1)
    narrow = narrowed(anatomy, width)
    assert (sizes_of(narrow).heads, sizes_of(narrow).kv_heads) == (2, 1)
    # Rolled by one of two groups the second stays: heads 2 and 3.
    own = list(range(2 * sizes.head_dim, 4 * sizes.head_dim))
    logits = answer(narrow, batch)
    silenced(anatomy, "o_proj", own)
    torch.testing.assert_close(logits, answer(anatomy, batch), rtol=1e-4, atol=1e-5)


def test_heterofls_prefix_of_a_transformer_by_hand():
    anatomy, _ = shop_of("bert")  # hidden 16, four heads of 4, feed-forward 24
    places = places_of(anatomy, Width(share=0.5, axes=("hidden", "head_dim", "ffn")))
    query = places["encoder.layer.1.attention.self.query.weight"]
    # The first two of each head's four: reshape(heads, -1)[:, :2].
    assert query[0].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert query[1].tolist() == list(range(8))
    into, out = places["encoder.layer.0.output.dense.weight"]
    assert (into.tolist(), out.tolist()) == (list(range(8)), list(range(12)))
    words = places["embeddings.word_embeddings.weight"]
    assert words[0] is None
    assert words[1].tolist() == list(range(8))
    assert places["embeddings.LayerNorm.bias"][0].tolist() == list(range(8))


def test_gpt2s_joined_queries_keys_and_values_are_cut_alike():
    anatomy, _ = shop_of("gpt2")
    places = places_of(anatomy, Width(share=0.5, axes=("hidden", "heads")))
    into, out = places["transformer.h.0.attn.c_attn.weight"]  # kept as [in, out]
    assert into.tolist() == list(range(8))
    assert out.tolist() == [*range(8), *range(16, 24), *range(32, 40)]
    assert places["transformer.h.0.attn.c_attn.bias"][0].tolist() == out.tolist()


def test_leading_pairs_of_rotating_heads_keep_their_frequencies():
    anatomy, _ = shop_of("qwen3")  # heads of 8
    narrow = narrowed(anatomy, Width(share=0.5, axes=("head_dim",)))
    whole_pairs = anatomy.backbone.rotary_emb.inv_freq
    # theta ** (-2 i / 8) for the pairs i = 0 and 1, and a smaller head's own are the same.
    torch.testing.assert_close(narrow.backbone.rotary_emb.inv_freq, whole_pairs[:2])
    own = type(narrow.model)(narrow.model.config).base_model.rotary_emb.inv_freq
    torch.testing.assert_close(own, whole_pairs[:2])
    # Pair i is the dimensions i and i + 4.
    queries = places_of(anatomy, Width(share=0.5, axes=("head_dim",)))[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert queries[0][:8].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", ["prefix", "random", "salient"])
def test_a_narrower_model_is_an_ordinary_one_of_its_family(family, window, tmp_path):
    anatomy, batch = shop_of(family)
    anatomy, _ = ordered(anatomy)
    rotates = family in ("llama", "qwen3")
    axes = ("hidden", "heads", "ffn") if rotates and window != "prefix" else ("hidden", "head_dim", "ffn")
    width = Width(share=0.5, axes=axes, window=window, turn=3 if window == "random" else 0)
    narrow = narrowed(anatomy, width)
    narrow.model.save_pretrained(tmp_path)
    loader = AutoModel if anatomy.head_kind == "backbone" else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path).eval()
    inputs = {anatomy.family.inputs: batch[anatomy.family.inputs]}
    if anatomy.takes_text:
        inputs["attention_mask"] = batch["attention_mask"]
    with torch.no_grad():
        theirs = loaded(**inputs)
    real = batch["attention_mask"].bool()
    expected = theirs.logits if anatomy.head_kind == "causal_lm" else theirs.last_hidden_state
    torch.testing.assert_close(answer(narrow, batch)[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "given", "words"),
    [
        (
            "bert",
            {"axes": ("heads",)},
            "leaves 2 heads of 4 beside a hidden width of 16; choose the axis ffn",
        ),
        (
            "llama",
            {"axes": ("head_dim",), "window": "random"},
            "narrowed to their leading pairs.*random window",
        ),
        (
            "qwen3",
            {"axes": ("head_dim",), "window": "salient"},
            "narrowed to their leading pairs.*salient window",
        ),
        (
            "llama",
            {"axes": ("heads",), "share": 0.9},
            "leaves this llama model of 2 groups of heads of 4 as it is",
        ),
    ],
)
def test_widths_that_no_model_of_the_family_can_have_are_refused(family, given, words):
    anatomy, _ = shop_of(family)
    with pytest.raises(ModelError, match=words):
        narrowed(anatomy, Width(**{"share": 0.5, **given}))
