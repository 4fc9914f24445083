"""What is made on the meta device is remembered by shapes, and is what torch makes."""

import pytest
import torch
from torch.nn import functional

from fedray.model.counter import ByteCounter, OpCounter
from fedray.model.meta_memory import MetaMemory


def meta(*sizes, **options):
    return torch.empty(*sizes, device="meta", **options)


def looks(value):
    tensors = value if isinstance(value, tuple | list) else [value]
    return [(t.shape, t.stride(), t.dtype, t.device.type, t.requires_grad) for t in tensors]


OPERATIONS = {
    "a sum whose strides are of unlike order": lambda: meta(3, 4).t() + meta(4, 3),
    "a number of another type": lambda: meta(3, dtype=torch.int64) * 1.0,
    "the same number as an integer": lambda: meta(3, dtype=torch.int64) * 1,
    "and as a truth": lambda: meta(3, dtype=torch.int64) * True,
    "several results": lambda: torch.native_layer_norm(meta(2, 5), [5], meta(5), meta(5), 1e-5),
    "a list of results": lambda: torch.split(meta(6, 2), 2),
    "a view": lambda: meta(6, 2).view(3, 4),
    "indices": lambda: meta(6, 2)[meta(3, dtype=torch.int64)],
    "half precision": lambda: functional.gelu(meta(2, 3, dtype=torch.bfloat16)),
    "a list of tensors": lambda: torch.cat([meta(2, 3), meta(4, 3)]),
    "nothing in it": lambda: meta(0, 3) + meta(3),
    "on the CPU": lambda: torch.ones(3) + torch.ones(3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_remembered_has_the_looks_of_what_torch_makes(name):
    plain = OPERATIONS[name]()
    memory = MetaMemory()
    for _ in range(3):
        # All of them are asked in between, so that one is not taken for another.
        with memory:
            again = [operation() for operation in OPERATIONS.values()][list(OPERATIONS).index(name)]
        assert looks(again) == looks(plain)


def test_results_are_new_tensors_and_what_is_written_over_is_the_same_one():
    with MetaMemory():
        one, other = meta(3), meta(3)
        first, second = one + other, one + other
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        for _ in range(2):
            assert one.addcmul_(other, other, value=0.5) is one
            assert one.mul_(2) is one


def test_values_on_the_cpu_are_computed_every_time():
    with MetaMemory():
        assert [(torch.full((2,), x) + 1.0).tolist() for x in (1.0, 2.0, 3.0)] == [[2, 2], [3, 3], [4, 4]]


def test_gradients_go_through_what_is_remembered():
    def gradient():
        weight = meta(4, 4, requires_grad=True)
        functional.gelu(functional.layer_norm(meta(2, 4) @ weight, (4,))).sum().backward()
        return weight.grad

    with MetaMemory():
        for _ in range(2):
            assert looks(gradient()) == looks(meta(4, 4))


def test_counters_above_it_count_the_same():
    def step(counter):
        with counter:
            weight = meta(64, 64, requires_grad=True)
            functional.gelu(functional.layer_norm(meta(8, 64) @ weight, (64,))).sum().backward()
        return (counter.peak, counter.phases) if isinstance(counter, ByteCounter) else counter.ops

    memory = MetaMemory()
    for kind in (ByteCounter, OpCounter):
        plain = step(kind())
        for _ in range(2):
            with memory:
                assert step(kind()) == plain
