"""The two counters on operations small enough to add up by hand."""

import torch

from fedray.model.counter import ByteCounter, OpCounter


def test_bytes_alive_are_those_of_storages_and_go_when_they_go():
    counter = ByteCounter()
    weights = torch.zeros(8, 4)  # 128 bytes
    counter.hold([weights], "weights")
    with counter:
        counter.enter(("forward", 0), "activations")
        kept = torch.ones(2, 4) @ weights.T  # 2 x 4 ones: 32 bytes; the product: 64
        view = kept.view(4, 4)  # a view is no storage of its own
        counter.enter(("backward", 0), "gradients")
        gradient = torch.ones(4)  # 16 bytes; the ones of before have gone
    assert counter.peak == 128 + 32 + 64
    assert counter.peak_terms["activations"] == 96
    assert counter.alive == 128 + 64 + 16
    assert counter.terms["gradients"] == 16
    assert sum(counter.phases["backward", 0].values()) == 208
    del kept
    assert counter.alive == 208  # the view still holds it
    del view, gradient
    assert counter.alive == 128


def test_a_tensor_that_is_said_to_be_something_else_counts_once():
    counter = ByteCounter()
    tensor = torch.zeros(16)
    counter.hold([tensor], "activations")
    counter.hold([tensor, tensor.view(4, 4)], "optimizer")
    assert (counter.alive, counter.terms["activations"], counter.terms["optimizer"]) == (64, 0, 64)


def test_a_product_is_two_flops_a_multiply_add_and_moves_its_arguments_and_result():
    counter = OpCounter()
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with counter:
        product = a @ b
        product.t()  # moves nothing
        counter.direction = "backward"
        product + 1
    # 2 * 3 * 5 * 7, and 4 bytes for each of 15 + 35 + 21 numbers; the sum reads and writes 21.
    assert dict(counter.ops) == {(210, 284): 1, (0, 168): 1}
    assert counter.flops == {"forward": 210, "turn": 0, "backward": 0}


def test_meta_tensors_count_as_real_ones():
    def step(device):
        counter = ByteCounter()
        x = torch.zeros(6, 10, device=device)
        counter.hold([x], "weights")
        with counter:
            y = torch.nn.functional.gelu(x @ x.T).sum()
            del y
        return counter.peak, counter.alive

    assert step("meta") == step("cpu")
