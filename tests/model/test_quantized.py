"""Frozen blocks in few bits: the numbers they stand for, what they cost, clients that train above them."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment, HeadOnly, lora_on_top, weights_on_top
from fedray.cost import WorkShape
from fedray.errors import ConfigError, ModelError
from fedray.menu import Grid, build_menu
from fedray.model.anatomy import dissect
from fedray.model.load import empty_backbone
from fedray.model.quantized import dequantise, quantise, quantised
from fedray.model.wire import wire_bytes
from fedray.training.audit import audit
from fedray.training.held import held_bytes
from fedray.training.narrow import NarrowBackbones
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import refuse_parts
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from lone import CONFIGS, Case, real, tracer
from shop import BLOCKS, TARGETS, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)


def assigned(family, bits, **changes):
    lora = lora_on_top(BLOCKS, BLOCKS, 4, targets=TARGETS[family])
    own = {"blocks": tuple(range(BLOCKS)), "adapter": lora, "batch_size": 3, "weight_bits": bits, **changes}
    return Assignment(**own)


def test_a_row_of_weights_by_hand():
    weight = torch.tensor([[1.27, -0.63, 0.004], [0.0, 0.0, 0.0]])
    values, scales = quantise(weight, 8)
    # 1.27 / 127 = 0.01 a step; a row of zeros stays one.
    assert values.tolist() == [[127, -63, 0], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(0.01)
    torch.testing.assert_close(
        dequantise(values, scales, 3, torch.float32), torch.tensor([[1.27, -0.63, 0.0], [0.0, 0.0, 0.0]])
    )


def test_four_bits_are_two_numbers_a_byte():
    values, scales = quantise(torch.tensor([[0.7, -0.7, 0.26]]), 4)
    # Steps of 0.1 from -7 to 7, plus 8: 15 and 1 in the first byte, 3 + 8 and the idle 8 in the second.
    assert values.tolist() == [[15 + 16 * 1, 11 + 16 * 8]]
    torch.testing.assert_close(dequantise(values, scales, 3, torch.float32), torch.tensor([[0.7, -0.7, 0.3]]))


@given(st.sampled_from([8, 4]), st.integers(1, 5), st.sampled_from([3, 64, 128, 70]), st.integers(0, 2**31))
def test_no_weight_moves_by_more_than_half_a_step_of_its_group(bits, rows, width, seed):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    values, scales = quantise(weight, bits)
    step = scales.repeat_interleave(width // scales.shape[1], dim=1)
    assert ((dequantise(values, scales, width, torch.float32) - weight).abs() <= 0.5001 * step).all()


def rounded_in_place(anatomy, bits):
    """The model with plain weights that have the rounded values: what a few bits stand for."""
    for block in range(anatomy.num_blocks):
        for linear in anatomy.linears(block).values():
            stands = isinstance(linear, nn.Linear)
            weight = linear.weight.detach() if stands else linear.weight.detach().T
            whole = dequantise(*quantise(weight, bits), weight.shape[1], torch.float32)
            linear.weight = nn.Parameter(whole if stands else whole.T.contiguous(), requires_grad=False)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "bert", "vit"])
def test_a_client_trains_as_on_a_model_of_the_rounded_weights(family, bits):
    few, plain = (build(family, [6], SGD) for _ in range(2))
    (small,) = train_pack(few, [job(few, family, 0, assigned(family, bits))])
    rounded_in_place(plain.backbones["fp32"].anatomy, bits)
    (same,) = train_pack(plain, [job(plain, family, 0, assigned(family, None))])
    for name, moved in small.delta.tensors().items():
        torch.testing.assert_close(moved, same.delta.tensors()[name], rtol=1e-4, atol=1e-7)


def test_clients_of_unlike_bits_share_no_pack_and_train_packed_as_alone():
    workshop = build("bert", [6, 9, 4, 5], SGD)
    jobs = [job(workshop, "bert", c, assigned("bert", bits)) for c, bits in enumerate([8, None, 8, 4])]
    packs = form_packs(jobs, 8)
    assert sorted([own.client_id for own in pack] for pack in packs) == [[0, 2], [1], [3]]
    (pair,) = (pack for pack in packs if len(pack) == 2)
    for own, update in zip(pair, train_pack(workshop, pair), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "bits", "changes"),
    [
        ("bert", 8, {}),
        ("bert", 4, {"recompute": True}),
        ("gpt2", 4, {}),
        ("llama", 8, {"dtype": "bf16"}),
        ("bert", 4, {"adapter": HeadOnly()}),
        ("bert", 8, {"split": True, "blocks": (0, 1)}),
    ],
)
def test_a_footprint_is_that_of_the_real_step(family, bits, changes):
    shape = WorkShape(rows=3, tokens=16, attention="memory_efficient")
    case = Case(family=family, assignment=assigned(family, bits, **changes), shape=shape, optimizer=SGD)
    workshop, own = real(case)
    footprint, seen = tracer(case, workshop)(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.02)
    if not case.assignment.split:
        (update,) = train_pack(workshop, [own])
        assert footprint.up_bytes == wire_bytes(update.delta.tensors())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_block_in_few_bits_is_the_smaller_by_what_its_linears_are(family):
    with torch.device("meta"):
        anatomy = dissect(
            empty_backbone(CONFIGS[family], "causal_lm" if family != "bert" else "classification")
        )
    sizes = {}
    for bits in (None, 8, 4):
        assignment = assigned(family, bits, adapter=HeadOnly())
        part = anatomy if bits is None else quantised(anatomy, bits)
        sizes[bits] = held_bytes(part, assignment)
    numbers = sum(linear.weight.numel() for linear in anatomy.linears(2).values())
    outputs = sum(
        linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
        for linear in anatomy.linears(2).values()
    )
    # Every linear's width is at most 64 here or two groups of it: a scale of 4 bytes per output, or two.
    saved = sizes[None]["block.2"] - sizes[8]["block.2 in 8 bits"]
    wide = sum(
        linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]
        for linear in anatomy.linears(2).values()
        if linear.weight.shape[1 if isinstance(linear, nn.Linear) else 0] == 128
    )
    assert saved == 3 * numbers - 4 * (outputs + wide)
    assert sizes[8]["block.2 in 8 bits"] - sizes[4]["block.2 in 4 bits"] == numbers // 2
    assert sizes[None]["stem"] == sizes[8]["stem"]


def test_a_model_is_quantised_once_only_and_made_once_a_process():
    backbone = build("bert", [3], SGD).backbones["fp32"]
    few = NarrowBackbones()
    part = few.of(backbone, assigned("bert", 8))
    assert few.of(backbone, assigned("bert", 8)).anatomy is part.anatomy
    with pytest.raises(ModelError, match=r"changed once only"):
        quantised(part.anatomy, 8)


def test_the_whole_model_keeps_its_weights_and_shares_what_is_not_rounded():
    anatomy = build("bert", [3], SGD).backbones["fp32"].anatomy
    before = {name: tensor.clone() for name, tensor in anatomy.model.state_dict().items()}
    part = quantised(anatomy, 8)
    after = anatomy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    stem = "embeddings.word_embeddings"
    assert (
        part.model.get_submodule(stem).weight.data_ptr()
        == anatomy.model.get_submodule(stem).weight.data_ptr()
    )


def test_a_menu_offers_few_bits_where_weights_stay_frozen():
    menu = build_menu(
        Grid(num_blocks=4, targets=("q",), ranks=(2,), tunings=("lora", "full"), weight_bits=(None, 8, 4))
    )
    assert [(type(entry.adapter).__name__, entry.weight_bits) for entry in menu] == [
        ("Weights", None),
        ("Lora", 4),
        ("Lora", 8),
        ("Lora", None),
    ]
    assert str(menu[1]) == "rank 2 on all 4 blocks, 4-bit weights, batch 8"


def test_weights_that_are_trained_are_not_rounded():
    with pytest.raises(ConfigError, match=r"weight_bits = 8 rounds weights that are frozen"):
        assigned("bert", 8, adapter=weights_on_top(BLOCKS, 1, "all"))


def test_other_bits_are_refused():
    with pytest.raises(ConfigError, match=r"weight_bits is one of 8, 4 or absent, found 3"):
        replace(assigned("bert", 8), weight_bits=3)


def test_a_rule_that_moves_frozen_weights_is_refused():
    anatomy = build("bert", [3], SGD).backbones["fp32"].anatomy
    with pytest.raises(
        ConfigError, match=r"'flora' keeps changes .* a client with 4-bit weights has rounded"
    ):
        refuse_parts(make_aggregation("flora", {}), anatomy, [assigned("bert", 4)])
