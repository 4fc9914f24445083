"""Frozen linears with zeros: the numbers they stand for, what they cost, clients that train above them."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment, lora_on_top, weights_on_top
from fedray.cost import WorkShape
from fedray.errors import ConfigError
from fedray.menu import Grid, build_menu
from fedray.model.pruned import kept_count, prune, whole
from fedray.training.audit import audit
from fedray.training.held import held_bytes
from fedray.training.narrow import NarrowBackbones
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import refuse_parts
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from lone import Case, real, tracer
from shop import BLOCKS, TARGETS, build, job
from tiny_run import merged, played

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)


def assigned(family, sparsity, **changes):
    lora = lora_on_top(BLOCKS, BLOCKS, 4, targets=TARGETS[family])
    own = {"blocks": tuple(range(BLOCKS)), "adapter": lora, "batch_size": 3, "sparsity": sparsity, **changes}
    return Assignment(**own)


def test_a_weight_by_hand():
    weight = torch.tensor([[0.1, -0.9, 0.3], [0.0, 0.5, -0.2]])
    values, bits = prune(weight, 0.5)
    # Of six numbers the three largest stay, at places 1, 2 and 4: 2 + 4 + 16.
    torch.testing.assert_close(values, torch.tensor([-0.9, 0.3, 0.5]))
    assert bits.tolist() == [22]
    torch.testing.assert_close(whole(values, bits, (2, 3)), torch.tensor([[0.0, -0.9, 0.3], [0.0, 0.5, 0.0]]))


@given(
    st.floats(0.0, 0.99), st.integers(1, 5), st.sampled_from([3, 8, 17]), st.integers(0, 2**31), st.booleans()
)
def test_the_largest_stay_as_they_are_and_the_others_are_zero(sparsity, rows, width, seed, ties):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    weight = weight.round() if ties else weight
    values, bits = prune(weight, sparsity)
    found = whole(values, bits, (rows, width))
    count = kept_count(rows * width, sparsity)
    assert (len(values), len(bits)) == (count, -(-rows * width // 8))
    gone = found != weight
    assert not found[gone].any()
    assert int(gone.sum()) <= rows * width - count
    if gone.any() and (~gone).any() and not ties:
        assert weight[gone].abs().max() <= weight[~gone].abs().min()


def pruned_in_place(anatomy, sparsity):
    """The model with plain weights that have the zeros."""
    for block in range(anatomy.num_blocks):
        for linear in anatomy.linears(block).values():
            stands = isinstance(linear, nn.Linear)
            weight = linear.weight.detach() if stands else linear.weight.detach().T
            zeroed = whole(*prune(weight, sparsity), tuple(weight.shape))
            linear.weight = nn.Parameter(zeroed if stands else zeroed.T.contiguous(), requires_grad=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_a_client_trains_as_on_a_model_with_zeros(family):
    few, plain = (build(family, [6], SGD) for _ in range(2))
    (small,) = train_pack(few, [job(few, family, 0, assigned(family, 0.6))])
    pruned_in_place(plain.backbones["fp32"].anatomy, 0.6)
    (same,) = train_pack(plain, [job(plain, family, 0, assigned(family, 0.0))])
    for name, moved in same.delta.tensors().items():
        torch.testing.assert_close(small.delta.tensors()[name], moved, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("family", "dtype"), [("bert", "fp32"), ("llama", "bf16"), ("gpt2", "fp32")])
def test_what_it_takes_is_in_the_footprint_and_arithmetic_is_as_much_as_before(family, dtype):
    case = Case(
        family=family,
        assignment=assigned(family, 0.75, dtype=dtype),
        shape=WorkShape(rows=3, tokens=32, attention="memory_efficient"),
        optimizer=SGD,
    )
    workshop, own = real(replace(case, assignment=case.assignment))
    trace = tracer(case, workshop)
    footprint, seen = trace(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.02)
    plain = trace(replace(case.assignment, sparsity=0.0), case.shape)
    flops = [cost.forward_flops + cost.backward_flops for cost in (footprint, plain)]
    assert flops[0] == pytest.approx(flops[1], rel=0.01)
    assert footprint.terms.weights < plain.terms.weights
    # A quarter of the numbers and a bit for each place, of the linears; norms and biases stay.
    for name, size in plain.held_bytes.items():
        if name.startswith("block."):
            assert footprint.held_bytes[f"{name} at sparsity 0.75"] < 0.45 * size


def test_bytes_that_reach_a_device_are_values_and_a_bit_a_place():
    workshop = build("bert", [4], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    backbone = NarrowBackbones().of(workshop.backbones["fp32"], assigned("bert", 0.5))
    held = held_bytes(backbone.anatomy, assigned("bert", 0.5))
    plain = held_bytes(anatomy, assigned("bert", 0.0))
    sizes = [linear.weight.numel() for linear in anatomy.linears(0).values()]
    saved = sum(4 * size - 4 * kept_count(size, 0.5) - -(-size // 8) for size in sizes)
    assert held["block.0 at sparsity 0.5"] == plain["block.0"] - saved


def test_unlike_sparsities_are_in_unlike_packs():
    workshop = build("bert", [4, 4, 4], SGD)
    jobs = [job(workshop, "bert", i, assigned("bert", zeros)) for i, zeros in enumerate((0.5, 0.0, 0.5))]
    assert [[own.client_id for own in pack] for pack in form_packs(jobs, 8)] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "sparsity is a share of zeros, 0 to below 1, found 1"),
        (
            {"weight_bits": 8},
            "sparsity = 0.5 keeps numbers of the dtype's own, and weight_bits = 8 rounds them",
        ),
        (
            {"adapter": weights_on_top(BLOCKS, 1, "bias")},
            "sparsity = 0.5 prunes weights that are frozen, and this",
        ),
    ],
)
def test_zeros_that_nothing_goes_with_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(assigned("bert", 0.5), **changes)


def test_rules_that_move_the_base_are_refused():
    anatomy = build("bert", [4], SGD).backbones["fp32"].anatomy
    with pytest.raises(
        ConfigError, match=r"of a client with a sparsity of 0.5 many are gone; choose another"
    ):
        refuse_parts(make_aggregation("flora"), anatomy, [assigned("bert", 0.5)])


def test_a_menu_has_zeros_or_few_bits_and_not_both():
    grid = Grid(num_blocks=2, targets=("query",), sparsities=(0.0, 0.5), weight_bits=(None, 8))
    assert {(e.sparsity, e.weight_bits) for e in build_menu(grid)} == {(0.0, None), (0.5, None), (0.0, 8)}
    entry = assigned("bert", 0.5)
    assert Assignment.from_json(entry.to_json()) == entry
    assert "0.5 of the weights zero" in str(entry)


def test_a_run_sends_what_was_predicted(tiny):
    menu = {"ranks": [2], "depths": ["all"], "sparsities": [0.5]}
    progress = played(merged(tiny, {"menu": menu, "rounds": {"num_rounds": 1, "clients_per_round": 4}}))
    for row in progress.clients:
        assert row.outcome == "ok"
        assert Assignment.from_json(row.assignment).sparsity == 0.5
        if row.measured_peak_bytes is not None:
            assert row.measured_peak_bytes == pytest.approx(row.predicted_peak_bytes, rel=0.02)
