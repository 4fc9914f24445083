"""The order of units by salience: worked out by hand on weights that are set, ties by number."""

from dataclasses import replace

import pytest
import torch

from fedray.model.salience import by_salience
from fedray.model.slices import num_units, places_of
from fedray.salience import unit_order_of
from fedray.training.optimizer import LocalOptimizer
from fedray.width import Width
from shop import build
from tiny_run import save_model


def blank(family):
    anatomy = build(family, [3], LocalOptimizer()).backbones["fp32"].anatomy
    with torch.no_grad():
        for parameter in anatomy.model.parameters():
            parameter.zero_()
    return anatomy


def set_in(anatomy, name, *place, to):
    with torch.no_grad():
        anatomy.model.get_parameter(name)[place] = to


def test_a_feed_forward_unit_is_what_goes_in_its_bias_and_what_comes_out():
    anatomy = blank("bert")  # 24 units in each of four blocks
    path = "encoder.layer.1"
    set_in(anatomy, f"{path}.intermediate.dense.weight", 5, 0, to=3.0)
    set_in(anatomy, f"{path}.output.dense.weight", 2, 5, to=-4.0)  # 5: the root of 9 + 16
    set_in(anatomy, f"{path}.intermediate.dense.bias", 7, to=4.9)
    set_in(anatomy, f"{path}.output.dense.weight", 0, 20, to=5.1)
    order = by_salience(anatomy)
    rest = [unit for unit in range(24) if unit not in (20, 5, 7)]
    assert order["ffn", 1].tolist() == [20, 5, 7, *rest]
    assert order["ffn", 0].tolist() == list(range(24))
    anatomy = replace(anatomy, unit_order=lambda: order)
    kept, _ = places_of(anatomy, Width(share=3 / 24, window="salient"))[f"{path}.intermediate.dense.weight"]
    assert kept.tolist() == [5, 7, 20]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_heads_are_ordered_by_whole_groups_with_their_keys_and_values(family):
    anatomy = blank(family)  # four heads in two groups
    path, size = "model.layers.2.self_attn", 8 if family == "qwen3" else 4
    set_in(anatomy, f"{path}.q_proj.weight", 0 * size, 0, to=2.0)
    set_in(anatomy, f"{path}.q_proj.weight", 1 * size + 1, 3, to=2.0)  # group 0: the root of 8
    set_in(anatomy, f"{path}.v_proj.weight", 1 * size, 0, to=2.5)
    set_in(anatomy, f"{path}.o_proj.weight", 0, 3 * size, to=1.5)  # group 1: the root of 8.5
    order = by_salience(anatomy)
    assert order["heads", 2].tolist() == [1, 0]
    assert order["heads", 0].tolist() == [0, 1]
    anatomy = replace(anatomy, unit_order=lambda: order)
    places = places_of(anatomy, Width(share=0.5, axes=("heads",), window="salient"))
    assert places[f"{path}.q_proj.weight"][0].tolist() == list(range(2 * size, 4 * size))
    assert places[f"{path}.k_proj.weight"][0].tolist() == list(range(size, 2 * size))
    assert places["model.layers.0.self_attn.k_proj.weight"][0].tolist() == list(range(size))


def test_a_hidden_unit_is_its_row_or_column_of_every_tensor_and_is_the_same_in_all_blocks():
    anatomy = blank("bert")
    set_in(anatomy, "embeddings.word_embeddings.weight", 4, 9, to=1.0)
    set_in(anatomy, "encoder.layer.3.output.dense.weight", 2, 0, to=1.0)
    set_in(anatomy, "encoder.layer.0.attention.self.query.weight", 0, 2, to=1.0)
    assert by_salience(anatomy)["hidden", -1].tolist()[:3] == [2, 9, 0]


def test_a_dimension_inside_heads_is_that_of_each_of_them():
    anatomy = blank("gpt2")  # four heads of 4; queries, keys and values joined, kept as [in, out]
    name = "transformer.h.0.attn.c_attn.weight"
    set_in(anatomy, name, 0, 16 + 4 * 2 + 3, to=1.0)  # dimension 3 of the third head's keys
    set_in(anatomy, name, 0, 32 + 1, to=0.8)  # dimension 1 of the first head's values
    set_in(anatomy, name, 1, 4 * 3 + 1, to=0.8)  # and of the last head's queries
    assert by_salience(anatomy)["head_dim", 0].tolist() == [1, 3, 0, 2]
    assert num_units(anatomy, "head_dim") == 4


def test_the_order_is_kept_by_the_weights_own_content(tmp_path):
    one, other = (save_model(tmp_path / name, "bert") for name in ("one", "other"))
    order = unit_order_of(one, "classification", tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    again = unit_order_of(other, "classification", tmp_path / "cache")  # the same weights elsewhere
    assert file.stat().st_mtime_ns == stamp
    assert {key: units.tolist() for key, units in again.items()} == {
        key: units.tolist() for key, units in order.items()
    }
    weights = tmp_path / "other" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    unit_order_of(other, "classification", tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
