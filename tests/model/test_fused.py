"""Fused norms and attention: transformers' own numbers, forward and backward, in their modules' places."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from fedray.model.anatomy import dissect
from fedray.model.attention import use_attention
from fedray.model.fused import FusedNorm, fuse_decoder, rotated

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def norms(weight):
    """Transformers' own norm and the same fused, with weights that require gradients."""
    plain = LlamaRMSNorm(len(weight), eps=1e-5)
    plain.weight = nn.Parameter(weight)
    fused = copy.deepcopy(plain)
    FusedNorm(fused)
    return plain, fused


def test_a_norm_of_three_and_four_is_five_over_the_root_of_two():
    _, fused = norms(torch.tensor([1.0, 2.0]))
    fused.variance_epsilon = 0.0
    # sqrt((9 + 16) / 2) = 3.5355
    torch.testing.assert_close(fused(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.848528, 2.262742]]))


@pytest.mark.parametrize("trains_weight", [False, True])
def test_a_fused_norm_has_transformers_numbers_and_gradients(trains_weight):
    torch.manual_seed(0)
    answers = []
    x, grad = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    for norm in norms(torch.rand(16)):
        norm.weight.requires_grad_(trains_weight)
        own = x.clone().requires_grad_()
        y = norm(own)
        y.backward(grad)
        answers.append([y, own.grad, *([norm.weight.grad] if trains_weight else [])])
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_norm_in_bfloat16_is_transformers_own_to_the_bit():
    torch.manual_seed(0)
    plain, fused = norms(torch.rand(16).bfloat16())
    x = torch.randn(4, 16).bfloat16()
    assert torch.equal(plain(x), fused(x))


def test_a_quarter_turn_moves_the_first_half_of_a_head_to_the_second():
    quarter = torch.tensor(math.pi / 2)
    turned = rotated(
        torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), quarter.cos().expand(4), quarter.sin().expand(4)
    )
    torch.testing.assert_close(turned, torch.tensor([[[[-3.0, -4.0, 1.0, 2.0]]]]))


def test_rotation_and_its_gradient_are_transformers():
    torch.manual_seed(0)
    x, grad = torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    angles = torch.randn(1, 7, 4).repeat(1, 1, 2)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    answer = rotated(ours, angles.cos().unsqueeze(2), angles.sin().unsqueeze(2))
    answer.backward(grad)
    expected, _ = apply_rotary_pos_emb(theirs, theirs, angles.cos(), angles.sin(), unsqueeze_dim=2)
    expected.backward(grad)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kernel", ["eager", "memory_efficient"])
@pytest.mark.parametrize(
    ("architecture", "config"), [(LlamaModel, LlamaConfig(**SMALL)), (Qwen3Model, Qwen3Config(**SMALL))]
)
def test_a_fused_decoder_answers_as_its_untouched_copy(architecture, config, kernel):
    torch.manual_seed(0)
    model = architecture(config)
    untouched = copy.deepcopy(model)
    anatomy = dissect(model)
    use_attention(model, kernel)
    use_attention(untouched, kernel)
    ids = torch.randint(0, 50, (2, 9))
    flow = anatomy.stem(ids, torch.ones_like(ids))
    hidden = flow.hidden
    for block in range(2):
        hidden = anatomy.block(block, hidden, flow.context)
    ours = anatomy.head(hidden, flow.context)
    torch.testing.assert_close(ours, untouched(input_ids=ids).last_hidden_state, rtol=1e-5, atol=1e-6)


def test_fusing_twice_changes_nothing_and_no_name_of_a_weight_moves():
    model = LlamaModel(LlamaConfig(**SMALL))
    names = list(model.state_dict())
    fuse_decoder(model)
    before = [module.forward for module in model.modules() if "forward" in vars(module)]
    fuse_decoder(model)
    after = [module.forward for module in model.modules() if "forward" in vars(module)]
    # Two norms and an attention a block, and the norm at the end.
    assert len(before) == 7
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert list(model.state_dict()) == names
