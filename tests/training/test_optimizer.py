"""SGD and AdamW of a stack against torch's own, client by client."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.training.optimizer import LocalOptimizer, clip_per_client

SHAPES = {"site.lora_A": (2, 6), "site.lora_B": (5, 2), "head.weight": (3, 6)}
OURS = {
    "sgd": LocalOptimizer(optim="sgd", learning_rate=0.1, weight_decay=0.05),
    "momentum": LocalOptimizer(optim="sgd", learning_rate=0.1, momentum=0.9, head_learning_rate=0.3),
    "adamw": LocalOptimizer(learning_rate=0.02, weight_decay=0.1, adam_beta2=0.98, head_learning_rate=0.2),
}


def torchs(ours, params):
    groups = [{"params": [tensor], "lr": ours.rate(name)} for name, tensor in params.items()]
    if ours.optim == "sgd":
        return torch.optim.SGD(groups, momentum=ours.momentum, weight_decay=ours.weight_decay)
    betas = (ours.adam_beta1, ours.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=ours.adam_epsilon, weight_decay=ours.weight_decay)


@pytest.mark.parametrize("kind", list(OURS))
def test_clients_at_unlike_steps_go_where_torch_takes_each(kind):
    ours, draw = OURS[kind], torch.Generator().manual_seed(0)
    stack = {name: torch.randn(3, *shape, generator=draw) for name, shape in SHAPES.items()}
    alone = [{name: t[c].clone().requires_grad_() for name, t in stack.items()} for c in range(3)]
    theirs = [torchs(ours, params) for params in alone]
    moments, steps = ours.moments(list(stack.values())), torch.zeros(3)
    for step in range(5):
        aboard = [0, 1] if step < 2 else [0, 1, 2]  # client 2 sits the first two steps out
        grads = [torch.randn(3, *shape, generator=draw) for shape in SHAPES.values()]
        # Slices share memory with the stack, so a step in place is a step of the stack.
        riders = slice(0, len(aboard))
        steps[riders] += 1
        ours.step(
            {name: t[riders] for name, t in stack.items()},
            [grad[riders] for grad in grads],
            [[moment[riders] for moment in kind_] for kind_ in moments],
            steps[riders],
        )
        for client in aboard:
            for tensor, grad in zip(alone[client].values(), grads, strict=True):
                tensor.grad = grad[client].clone()
            theirs[client].step()
    ended = {name: torch.stack([params[name].detach() for params in alone]) for name in SHAPES}
    torch.testing.assert_close(stack, ended, rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=4), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_each_client_is_clipped_as_torch_clips_it_alone(sizes, max_norm):
    draw = torch.Generator().manual_seed(3)
    grads = [torch.randn(len(sizes), *shape, generator=draw) for shape in SHAPES.values()]
    for grad in grads:
        grad.mul_(torch.tensor(sizes).view(-1, 1, 1))
    expected = []
    for client in range(len(sizes)):
        leaves = [torch.zeros(grad.shape[1:], requires_grad=True) for grad in grads]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad[client].clone()
        torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        expected.append([leaf.grad for leaf in leaves])
    clip_per_client(grads, max_norm)
    for client, theirs in enumerate(expected):
        for grad, their in zip(grads, theirs, strict=True):
            torch.testing.assert_close(grad[client], their, rtol=1e-5, atol=1e-7)


def test_what_cannot_take_effect_is_refused():
    with pytest.raises(ConfigError, match=r"momentum = 0.9 has no effect with optim = adamw"):
        LocalOptimizer(momentum=0.9)
    with pytest.raises(ConfigError, match="learning_rate must not be negative, found -1"):
        LocalOptimizer(learning_rate=-1)
