"""Law L7: a client trained in a pack ends where it ends alone, and where PEFT and torch would take it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from fedray.adapter import Adapter, applied
from fedray.errors import ConfigError, ModelError
from fedray.model.sites import attach_sites
from fedray.seeds import derive_seed
from fedray.training.data import batch_plan
from fedray.training.job import Job, Update
from fedray.training.optimizer import LocalOptimizer
from fedray.training.packed import PackedForward, course_of
from fedray.training.packs import form_packs
from fedray.training.train import Workshop, stack_of, train_pack
from shop import BLOCKS, CONFIGS, LABELS, TARGETS, assign, b_alone, build, job

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
ADAMW = LocalOptimizer(optim="adamw", learning_rate=0.01, weight_decay=0.1, max_grad_norm=0.5)
FEDPROX = replace(SGD, proximal_mu=2.0)
MIXED = [(4, 2, 9), (1, 4, 4), (2, 1, 13), (4, 8, 6), (3, 3, 1)]  # depth, rank, rows of each client


def mixed(family: str, optimizer: LocalOptimizer) -> tuple[Workshop, list[Job]]:
    workshop = build(family, [rows for _, _, rows in MIXED], optimizer)
    jobs = [job(workshop, family, i, assign(family, d, r)) for i, (d, r, _) in enumerate(MIXED)]
    return workshop, jobs


def distance(left: Adapter, right: Adapter) -> float:
    ours, theirs = left.tensors(), right.tensors()
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    size = sum(float(tensor.square().sum()) for tensor in theirs.values())
    return (gap / size) ** 0.5


def delta(update: Update) -> Adapter:
    assert update.delta is not None
    return update.delta


class _WithHead(nn.Module):
    """PEFT's model under the head that fedray's rows go through, written out again."""

    def __init__(self, workshop: Workshop, family: str, sent: Adapter, rank: int) -> None:
        super().__init__()
        anatomy = workshop.backbones["fp32"].anatomy
        model = type(anatomy.model)(CONFIGS[family])
        model.load_state_dict(anatomy.model.state_dict(), strict=False)  # ours has no pooler
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(TARGETS[family]),
            lora_dropout=0.0,
            fan_in_fan_out=family == "gpt2",
        )
        self.peft = get_peft_model(model.eval(), config)
        self.head = nn.Linear(16, LABELS) if sent.head else None
        if self.head is not None:
            self.head.load_state_dict(dict(sent.head))
        with torch.no_grad():
            for name, parameter in self.peft.named_parameters():
                if "lora_" in name:
                    parameter.copy_(self._of(sent, name))
                    parameter.requires_grad_(".lora_B." in name or not sent.frozen())

    def _of(self, adapter: Adapter, name: str) -> Tensor:
        site = next(site for site in adapter.factors if f"{site}.lora_" in name)
        return adapter.factors[site].a if ".lora_A." in name else adapter.factors[site].b

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.head is None:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            losses = []
            for i in range(len(labels)):  # row by row: transformers averages over tokens of all rows
                row = {
                    "input_ids": batch["input_ids"][i : i + 1],
                    "attention_mask": batch["attention_mask"][i : i + 1],
                }
                losses.append(self.peft(**row, labels=labels[i : i + 1]).loss)
            return torch.stack(losses).mean()
        if "pixel_values" in batch:  # the class token, as in ViTForImageClassification
            read = self.peft(pixel_values=batch["pixel_values"]).last_hidden_state[:, 0]
            return nn.functional.cross_entropy(self.head(read), batch["label"])
        hidden = self.peft(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * real).sum(1) / real.sum(1)
        return nn.functional.cross_entropy(self.head(pooled), batch["label"])

    def moved(self, sent: Adapter, like: Adapter) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.peft.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                site = next(site for site in sent.factors if f"{site}.lora_" in name)
                side = "lora_A" if ".lora_A." in name else "lora_B"
                found[f"{site}.{side}"] = parameter.detach() - self._of(sent, name)
        if self.head is not None:
            found |= {f"head.{n}": p.detach() - sent.head[n] for n, p in self.head.named_parameters()}
        assert found.keys() == like.tensors().keys()
        return found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3", "vit"])
@pytest.mark.parametrize("optim", ["sgd", "adamw", "fedprox"])
@pytest.mark.parametrize("train_a", [True, False], ids=["A and B", "B alone"])
def test_a_client_ends_where_peft_and_torch_take_it(family: str, optim: str, train_a: bool) -> None:
    optimizer = {"sgd": SGD, "adamw": ADAMW, "fedprox": FEDPROX}[optim]
    workshop = build(family, [9], optimizer)
    whole = assign(family, BLOCKS, 3, num_epochs=2)
    work = job(workshop, family, 0, whole if train_a else b_alone(whole))
    (update,) = train_pack(workshop, [work])
    oracle = _WithHead(workshop, family, work.sent, 3)
    trained = [p for p in oracle.parameters() if p.requires_grad]
    stepper: torch.optim.Optimizer = torch.optim.SGD(trained, lr=0.05)
    if optim == "adamw":
        stepper = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    starts = [p.detach().clone() for p in trained]
    for batch in batch_plan(9, 4, 2, None, derive_seed(7, "batches", 1, 0, 0)):
        stepper.zero_grad()
        # Of FedProx (1812.06127), equation 2: mu / 2 ||w - w_t||^2.
        away = sum((p - start).square().sum() for p, start in zip(trained, starts, strict=True))
        (oracle.loss(dict(workshop.pool.batch(batch, 24))) + optimizer.proximal_mu / 2 * away).backward()
        if optim == "adamw":
            nn.utils.clip_grad_norm_(trained, 0.5)
        stepper.step()
    expected = oracle.moved(work.sent, delta(update))
    for name, tensor in delta(update).tensors().items():
        # AdamW divides by tiny second moments, so its fp32 rounding is larger.
        assert torch.allclose(tensor, expected[name], atol=2e-4 if optim == "adamw" else 2e-6), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_clients_of_unlike_ranks_depths_and_rows_train_together_as_they_do_alone(family: str) -> None:
    workshop, jobs = mixed(family, SGD)
    together = train_pack(workshop, jobs)
    for work, packed in zip(jobs, together, strict=True):
        (alone,) = train_pack(workshop, [work])
        assert distance(delta(packed), delta(alone)) < 1e-5
        assert packed.loss == pytest.approx(alone.loss, rel=1e-5)


def test_clients_that_train_b_alone_leave_their_own_a_and_pack_apart_from_those_that_train_both() -> None:
    workshop, jobs = mixed("bert", SGD)
    alone = [job(workshop, "bert", work.client_id, b_alone(work.assignment)) for work in jobs]
    packs = form_packs([*jobs, *alone], 16)
    assert [{work.assignment.adapter.train_a for work in pack} for pack in packs] == [{True}, {False}]
    for work, packed in zip(alone, train_pack(workshop, alone), strict=True):
        (by_itself,) = train_pack(workshop, [work])
        assert distance(delta(packed), delta(by_itself)) < 1e-5
        for site, moved in delta(packed).factors.items():
            assert f"{site}.lora_A" not in packed.tensors()
            assert not moved.a.any()
            assert moved.a.untyped_storage().nbytes() == 4  # one zero stands for all of them
            assert torch.equal(applied(work.sent, delta(packed)).factors[site].a, work.sent.factors[site].a)


def test_one_adamw_step_in_a_pack_is_the_step_alone() -> None:
    workshop, jobs = mixed("bert", ADAMW)
    jobs = [replace(work, assignment=replace(work.assignment, max_steps=1), num_steps=1) for work in jobs]
    for work, packed in zip(jobs, train_pack(workshop, jobs), strict=True):
        (alone,) = train_pack(workshop, [work])
        assert distance(delta(packed), delta(alone)) < 1e-4


def test_a_small_wave_gives_what_a_large_one_gives() -> None:
    workshop, jobs = mixed("bert", SGD)
    one_at_a_time = replace(workshop, tokens_per_wave=1)
    for whole, single in zip(train_pack(workshop, jobs), train_pack(one_at_a_time, jobs), strict=True):
        assert distance(delta(whole), delta(single)) < 1e-5


def test_the_same_pack_gives_the_same_bits_again() -> None:
    workshop, jobs = mixed("llama", ADAMW)
    first, second = train_pack(workshop, jobs), train_pack(workshop, jobs)
    for one, other in zip(first, second, strict=True):
        for name, tensor in delta(one).tensors().items():
            assert torch.equal(tensor, delta(other).tensors()[name])


def test_training_writes_to_no_frozen_weight_and_leaves_no_adapter_behind() -> None:
    workshop, jobs = mixed("gpt2", ADAMW)
    backbone = workshop.backbones["fp32"]
    before = {name: p.clone() for name, p in backbone.anatomy.model.named_parameters()}
    train_pack(workshop, jobs)
    assert all(torch.equal(p, before[name]) for name, p in backbone.anatomy.model.named_parameters())
    assert all(site.factors is None for site in backbone.sites.values())


def test_recomputation_changes_no_number() -> None:
    workshop, jobs = mixed("llama", SGD)
    work = replace(jobs[0], assignment=replace(jobs[0].assignment, recompute=True))
    (with_it,) = train_pack(workshop, [work], recompute=True)
    (without,) = train_pack(workshop, [work])
    assert distance(delta(with_it), delta(without)) < 4e-6


def test_the_reference_model_is_the_frozen_one() -> None:
    workshop, _ = mixed("llama", SGD)
    work = job(workshop, "llama", 0, assign("llama", 4, 2))
    backbone = workshop.backbones["fp32"]
    batch = {name: t.to(workshop.device) for name, t in workshop.pool.batch(np.arange(4), 24).items()}
    stack = stack_of([work.sent], SGD, workshop.device)
    factors, head = stack.parts(stack.params, None)
    forward = PackedForward(backbone, course_of(work.assignment, "eager", recompute=False), factors, head)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    plain = backbone.anatomy.model(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    assert torch.allclose(forward.without_adapter(batch)[real], plain[real], atol=1e-5)
    assert not torch.allclose(forward(batch)[real], plain[real], atol=1e-3)


def test_a_loss_that_is_no_number_is_reported_and_spoils_no_neighbour() -> None:
    workshop, jobs = mixed("bert", SGD)
    spoilt = {name: tensor.clone() for name, tensor in jobs[1].sent.head.items()}
    spoilt["bias"][0] = float("nan")
    bad = replace(jobs[1], sent=replace(jobs[1].sent, head=spoilt))
    updates = train_pack(workshop, [jobs[0], bad, jobs[2]])
    assert updates[1].delta is None
    assert "client 1" in updates[1].message
    assert "nan" in updates[1].message
    (alone,) = train_pack(workshop, [jobs[2]])
    assert distance(delta(updates[2]), delta(alone)) < 1e-5


def test_an_update_applied_to_what_was_sent_is_what_was_trained() -> None:
    workshop, jobs = mixed("bert", SGD)
    (update,) = train_pack(workshop, jobs[:1])
    trained = applied(jobs[0].sent, delta(update))
    assert all(torch.isfinite(t).all() for t in trained.tensors().values())
    assert distance(trained, jobs[0].sent) > 1e-4


def test_packs_hold_what_can_share_a_forward_and_recompute_does_not_part_them() -> None:
    workshop = build("bert", [5] * 6, SGD)
    plans = [
        assign("bert", 4, 2),
        assign("bert", 1, 8),
        assign("bert", 4, 2, recompute=True),
        assign("bert", 2, 2, batch_size=2),
    ]
    jobs = [job(workshop, "bert", i, plans[i % 4]) for i in range(6)]
    packs = form_packs(jobs, 3)
    assert sorted(work.client_id for pack in packs for work in pack) == list(range(6))
    assert all(len({work.assignment.batch_size for work in pack}) == 1 for pack in packs)
    assert max(map(len, packs)) == 3
    assert [[work.client_id for work in pack] for pack in form_packs(jobs[::-1], 3)] == [
        [work.client_id for work in pack] for pack in packs
    ]


def test_a_target_that_names_no_linear_is_a_sentence() -> None:
    workshop = build("bert", [4], SGD)
    with pytest.raises(ModelError, match="q_proj"):
        attach_sites(workshop.backbones["fp32"].anatomy, ("q_proj",))


def test_momentum_with_adamw_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"momentum = 0\.9 has no effect with optim = adamw"):
        LocalOptimizer(optim="adamw", momentum=0.9)
