"""What only an accelerator can show. Run them all, with a table: python benchmarks/gpu_checks.py."""

from dataclasses import replace

import pytest
import torch

from fedray.adapter import Adapter
from fedray.training.audit import audit
from fedray.training.job import Update
from fedray.training.optimizer import LocalOptimizer
from fedray.training.train import Workshop, train_pack
from shop import assign, build, job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05)
MIXED = [(4, 2, 9), (1, 4, 4), (2, 1, 13)]  # depth, rank, rows of each client


def on_cuda(family: str) -> Workshop:
    workshop = build(family, [rows for _, _, rows in MIXED], SGD)
    workshop.backbones["fp32"].anatomy.model.cuda()
    return replace(workshop, device="cuda")


def gap(left: Update, right: Update) -> float:
    ours, theirs = (_delta(update).tensors() for update in (left, right))
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-9)) for n in ours)


def _delta(update: Update) -> Adapter:
    assert update.delta is not None
    return update.delta


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_a_pack_on_the_gpu_ends_where_it_ends_on_the_cpu(family: str) -> None:
    here = build(family, [rows for _, _, rows in MIXED], SGD)
    there = on_cuda(family)
    jobs = [job(here, family, i, assign(family, d, r)) for i, (d, r, _) in enumerate(MIXED)]
    for cpu, gpu in zip(train_pack(here, jobs), train_pack(there, jobs), strict=True):
        assert gap(gpu, cpu) < 1e-3


def test_the_same_pack_gives_the_same_bits_on_the_gpu() -> None:
    there = on_cuda("bert")
    jobs = [job(there, "bert", i, assign("bert", d, r)) for i, (d, r, _) in enumerate(MIXED)]
    for one, other in zip(train_pack(there, jobs), train_pack(there, jobs), strict=True):
        assert gap(one, other) == 0


def test_counted_bytes_on_the_gpu_are_the_allocators() -> None:
    there = on_cuda("llama")
    work = replace(job(there, "llama", 0, assign("llama", 4, 2)), attention="eager")
    audit(there, work)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = sum(p.numel() * p.element_size() for p in there.backbones["fp32"].anatomy.model.parameters())
    counted = audit(there, work).peak_bytes - held
    reported = torch.cuda.max_memory_allocated() - before
    # CUDA's allocator rounds every block up to 512 bytes, which is much beside tensors this small.
    assert counted <= reported * 1.02
