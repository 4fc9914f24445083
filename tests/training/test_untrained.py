"""What is declared untrained costs nothing: no saved tensor and no arithmetic of a backward pass."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedray.assignment import weights_on_top
from fedray.cost import WorkShape
from fedray.model.counter import CPU_FLASH_FLOPS
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import train_pack
from lone import DEEP, Case, real, tracer
from shop import BLOCKS, CONFIGS, assign, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.1)


def saved_by_block(family, assignment):
    """How many tensors each block's forward pass leaves for the backward pass, in one real step."""
    shape = WorkShape(rows=2, tokens=32, attention="memory_efficient")
    workshop, work = real(Case(family=family, assignment=assignment, shape=shape, optimizer=SGD))
    saved, running = [0] * DEEP, []
    for number, block in enumerate(workshop.backbones["fp32"].anatomy.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: running.append(number))
        block.register_forward_hook(lambda *_: running.clear())

    def seen(tensor):
        for number in running:
            saved[number] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        train_pack(workshop, [work])
    return saved


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("kind", ["lora", "all", "bias"])
@pytest.mark.parametrize("depth", [1, 3])
def test_blocks_below_the_lowest_trained_one_save_nothing(family, kind, depth):
    given = replace(assign(family, depth, 2), batch_size=2)
    if kind == "bias" and family in ("llama", "qwen3"):
        return  # has no biases
    if kind != "lora":
        given = replace(given, adapter=weights_on_top(BLOCKS, depth, part=kind))
    saved = saved_by_block(family, given)
    assert saved[: BLOCKS - depth] == [0] * (BLOCKS - depth)
    assert all(saved[BLOCKS - depth :])


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "qwen3"])
def test_a_frozen_block_below_costs_its_forward_pass_alone(family):
    """By torch's counter, on real steps of submodels whose last block trains."""

    def flops(num_blocks):
        whole = assign(family, 1, 2)
        given = replace(
            whole,
            blocks=tuple(range(BLOCKS - num_blocks, BLOCKS)),
            adapter=replace(whole.adapter, ranks=whole.adapter.ranks[-num_blocks:]),
        )
        workshop = build(family, [4], SGD)
        with FlopCounterMode(display=False, custom_mapping=dict(CPU_FLASH_FLOPS)) as counter:
            train_pack(workshop, [job(workshop, family, 0, given)], recompute=True)
        return counter.get_total_flops()

    def forward_of_one():
        workshop = build(family, [4], SGD)
        anatomy, batch = workshop.backbones["fp32"].anatomy, workshop.pool.batch(workshop.partitions[0], 24)
        with torch.no_grad():
            flow = anatomy.stem(batch[anatomy.family.inputs], batch["attention_mask"])
            with FlopCounterMode(display=False, custom_mapping=dict(CPU_FLASH_FLOPS)) as counter:
                anatomy.block(0, flow.hidden, flow.context)
        return counter.get_total_flops()

    one, two, three = map(flops, (1, 2, 3))
    assert two - one == three - two == pytest.approx(forward_of_one(), rel=0.02)


def test_backward_takes_twice_the_forward_pass_once_or_a_part_by_what_is_trained():
    """Claim R9: 2.0 for all weights, a little above 1 for LoRA on all blocks, a part for the last block."""
    # Short rows, so that linears are most of it: attention itself takes twice whatever is trained.
    shape = WorkShape(rows=2, tokens=16, attention="eager")
    ratios = []
    for adapter in (
        weights_on_top(DEEP, DEEP, part="all", stem=True),
        replace(assign("bert", BLOCKS, 2).adapter, ranks=(4,) * DEEP),
        replace(assign("bert", BLOCKS, 2).adapter, ranks=(0,) * (DEEP - 1) + (4,)),
    ):
        whole = replace(assign("bert", BLOCKS, 2), blocks=tuple(range(DEEP)), adapter=adapter, batch_size=2)
        case = Case(family="bert", assignment=whole, shape=shape, optimizer=SGD)
        found = tracer(case, real(case)[0])(whole, shape)
        ratios.append(found.backward_flops / found.forward_flops)
    assert ratios[0] == pytest.approx(2.0, rel=0.01)
    assert 1.0 < ratios[1] < 1.25
    assert ratios[2] == pytest.approx(ratios[1] / DEEP, rel=0.25)
