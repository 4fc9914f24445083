"""Codecs of named tensors: by hand, against safetensors and torch.linalg.svd, and as laws."""

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.model.update_codecs import (
    coded_layout,
    decode_tensors,
    encode_tensors,
    is_coded,
    leaves_out,
)
from fedray.model.wire import wire_bytes

CODECS = ("none", "bf16", "int8", "int4", "top1", "top10", "top99", "rank1", "rank4")
LEVELS = {"int8": 127, "int4": 7}

shapes = st.lists(st.integers(1, 70), max_size=3).map(tuple)
layouts = st.dictionaries(st.text("ab.", min_size=1, max_size=9), shapes, min_size=1, max_size=5)


def drawn(layout, seed=0):
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source) ** 3 for name, shape in layout.items()}


def there_and_back(tensors, codec, seed=0):
    return decode_tensors(encode_tensors(tensors, codec, lambda name: seed), tensors, codec)


# By hand.


def test_a_factor_has_a_scale_for_each_of_its_ranks_on_both_sides():
    # Whole steps of each rank's own scale, which is 1 for the first and 1/2 for the second.
    a = torch.tensor([[127.0, -3.0, 5.0] * 40, [63.5, 0.5, -1.0] * 40])
    for name, tensor in (("lora_A", a), ("lora_B", a.T)):
        coded = encode_tensors({name: tensor}, "int8", lambda name: 0)
        assert coded[f"{name}.scale"].tolist() == [[1.0], [0.5]]
        assert coded[f"{name}.values"].tolist() == [[127, -3, 5] * 40, [127, 1, -2] * 40]
        assert torch.equal(decode_tensors(coded, {name: tensor}, "int8")[name], tensor)


def test_top_chooses_among_all_entries_of_a_tensor_and_not_row_by_row():
    x = torch.zeros(10, 20)
    x[3, 4], x[3, 5], x[9, 19] = 5.0, -7.0, 2.0
    coded = encode_tensors({"w": x}, "top1", lambda name: 0)  # 2 of 200
    assert coded["w.index"].tolist() == [[65, 64]] or coded["w.index"].tolist() == [[64, 65]]
    decoded = decode_tensors(coded, {"w": x}, "top1")["w"]
    assert decoded.nonzero().tolist() == [[3, 4], [3, 5]]
    assert decoded[3, 4:6].tolist() == [5.0, -7.0]


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("none", 8 * 384 * 4),
        ("bf16", 8 * 384 * 2),
        ("int8", 8 * 384 + 8 * 4),
        ("int4", 8 * 192 + 8 * 4),
        ("top10", 307 * (4 + 2)),  # 307 of 3072, and places of two bytes
        ("rank2", 2 * (8 + 384) * 4),
        ("rank8", 8 * 384 * 4),  # 8 ranks have no shorter factors: plain
    ],
)
def test_a_factor_of_rank_8_and_width_384_has_this_payload(codec, payload):
    for shape in ((8, 384), (384, 8)):
        coded = encode_tensors({"x": torch.ones(shape)}, codec, lambda name: 0)
        assert sum(t.numel() * t.element_size() for t in coded.values()) == payload


def test_places_in_a_tensor_of_more_than_32768_entries_have_four_bytes():
    coded = encode_tensors({"x": torch.ones(8, 4097)}, "top10", lambda name: 0)
    assert coded["x.index"].dtype == torch.int32
    assert not is_coded(
        "x", torch.ones(8, 4097), "top50"
    )  # half of them at eight bytes each is all there was
    assert is_coded("x", torch.ones(8, 4096), "top50")


def test_a_rank_of_a_matrix_known_by_hand_is_its_largest_direction():
    # Singular values 30 and 2 along the axes.
    x = torch.zeros(40, 50)
    x[7, 3], x[1, 0] = -30.0, 2.0
    decoded = there_and_back({"w": x}, "rank1")["w"]
    expected = torch.zeros(40, 50)
    expected[7, 3] = -30.0
    assert torch.allclose(decoded, expected, atol=1e-5)


def test_what_would_not_be_shorter_is_sent_plain_to_the_bit():
    tensors = drawn({"bias": (5,), "weight": (5, 300)})
    for codec in ("int8", "int4", "top10", "rank1"):
        coded = encode_tensors(tensors, codec, lambda name: 0)
        assert coded["bias"] is tensors["bias"]
        assert "weight" not in coded


# Against torch and safetensors.


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (64, 384)])
def test_rank_n_is_off_by_the_singular_values_it_leaves_and_no_more(shape):
    # Eckart-Young: no matrix of that rank is nearer.
    x = drawn({"w": shape}, seed=3)["w"]
    decoded = there_and_back({"w": x}, "rank4")["w"].double()
    u, s, vt = torch.linalg.svd(x.double(), full_matrices=False)
    assert float((decoded - x).norm()) == pytest.approx(float(s[4:].norm()), rel=1e-5)
    assert torch.allclose(decoded, u[:, :4] @ torch.diag(s[:4]) @ vt[:4], atol=1e-5 * float(s[0]))


@given(layouts, st.sampled_from(CODECS))
@settings(max_examples=100, deadline=None)
def test_counted_bytes_are_those_that_safetensors_writes_and_those_foretold_from_shapes(layout, codec):
    tensors = drawn(layout)
    coded = encode_tensors(tensors, codec, lambda name: 0)
    assert wire_bytes(coded) == len(safetensors.torch.save(coded))
    told = coded_layout({name: t.to("meta") for name, t in tensors.items()}, codec)
    assert {n: (t.shape, t.dtype) for n, t in told.items()} == {
        n: (t.shape, t.dtype) for n, t in coded.items()
    }
    assert wire_bytes(told) == wire_bytes(coded)
    decoded = decode_tensors(coded, tensors, codec)
    assert list(decoded) == list(tensors)
    assert all(decoded[n].shape == t.shape and decoded[n].dtype == t.dtype for n, t in tensors.items())


# Laws.


@pytest.mark.parametrize("codec", LEVELS)
@pytest.mark.parametrize("shape", [(2, 65), (65, 2)])
def test_the_mean_over_seeds_is_what_was_sent(codec, shape):
    # A draw between two steps has a standard deviation of half a step at most, so the mean of n is within
    # 5 / (2 sqrt n) steps but for a chance of 6e-7 an entry.
    x, count = drawn({"w": shape})["w"], 1000
    ranks = x if shape[0] == 2 else x.T
    steps = ranks.abs().amax(1, keepdim=True) / LEVELS[codec]
    total = sum(there_and_back({"w": x}, codec, seed)["w"].double() for seed in range(count))
    gap = total / count - x
    assert ((gap if shape[0] == 2 else gap.T).abs() / steps).max() < 2.5 / math.sqrt(count)


@given(st.integers(1, 40), st.integers(40, 80), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_largest_share_keeps_at_least_its_share_of_the_squares(rows, columns, per_cent, seed):
    # A k-contraction (1809.07599): |x - top_k(x)|^2 <= (1 - k / d) |x|^2.
    x, codec = drawn({"w": (rows, columns)}, seed)["w"].double(), f"top{per_cent}"
    kept = max(1, x.numel() * per_cent // 100)
    left = (there_and_back({"w": x}, codec)["w"] - x).square().sum()
    assert left <= (1 - kept / x.numel()) * x.square().sum() * (1 + 1e-9)


@given(st.integers(8, 30), st.integers(30, 60), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_truncation_keeps_at_least_its_share_of_the_squares(rows, columns, rank, seed):
    x = drawn({"w": (rows, columns)}, seed)["w"]
    left = (there_and_back({"w": x}, f"rank{rank}")["w"] - x).square().sum()
    assert left <= (1 - rank / rows) * x.square().sum() * (1 + 1e-5)


@given(layouts, st.sampled_from(CODECS), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_zeros_come_back_as_zeros(layout, codec, seed):
    decoded = there_and_back({name: torch.zeros(shape) for name, shape in layout.items()}, codec, seed)
    assert all(not t.any() for t in decoded.values())


@pytest.mark.parametrize("codec", LEVELS)
def test_each_tensor_draws_from_the_seed_of_its_own_name(codec):
    x = drawn({"w": (4, 300)})["w"]
    seeds = {"one": 1, "same": 1, "other": 2}
    coded = encode_tensors(dict.fromkeys(seeds, x), codec, seeds.__getitem__)
    assert torch.equal(coded["one.values"], coded["same.values"])
    assert not torch.equal(coded["one.values"], coded["other.values"])
    # Whoever else is in the message changes nothing.
    assert torch.equal(
        encode_tensors({"one": x}, codec, seeds.__getitem__)["one.values"], coded["one.values"]
    )


def test_only_what_is_chosen_or_truncated_leaves_something_out():
    assert [codec for codec in CODECS if leaves_out(codec)] == ["top1", "top10", "top99", "rank1", "rank4"]


def test_tensors_that_did_not_come_are_left_out():
    tensors = drawn({"mine": (4, 99), "theirs": (4, 99)})
    coded = encode_tensors({"mine": tensors["mine"]}, "int8", lambda name: 0)
    assert list(decode_tensors(coded, tensors, "int8")) == ["mine"]


# Bad input.


@pytest.mark.parametrize("codec", ["int2", "rank", "rank0", "rank01", "rank-1", "rank1.5", "top0", ""])
def test_an_unknown_codec_is_refused(codec):
    sentence = r"none, bf16, int8, int4 or top1 to top99 \(per cent\), found .* rank1, rank2, \.\.\. too"
    for ask in (
        lambda: leaves_out(codec),
        lambda: encode_tensors({"w": torch.ones(9, 9)}, codec, lambda n: 0),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ask()
