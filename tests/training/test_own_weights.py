"""Clients that train the model's own weights: packed as alone, as torch itself trains them, and no more."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fedray.adapter import Adapter, GlobalState
from fedray.assignment import Assignment, weights_on_top
from fedray.cost import WorkShape
from fedray.model.weight_sites import attach_weight_sites
from fedray.model.wire import wire_bytes
from fedray.trained import Weights
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import pretrained, trained_names, with_own_weights
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from lone import Case, real, tracer
from shop import BLOCKS, build, job, num_labels

SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
ADAMW = LocalOptimizer(learning_rate=0.01)
SIZES = [6, 9, 4]
TUNINGS = {
    "full": weights_on_top(BLOCKS, BLOCKS, "all", stem=True),
    "top": weights_on_top(BLOCKS, 2, "all"),
    "bitfit": weights_on_top(BLOCKS, BLOCKS, "bias"),
}


def assigned(tuning, **changes):
    return Assignment(blocks=tuple(range(BLOCKS)), adapter=TUNINGS[tuning], **{"batch_size": 3, **changes})


def job_of(workshop, family, client, assignment):
    """The job with the model's own weights beside the head that `shop.start` gives."""
    plain = job(workshop, family, client, assignment)
    anatomy = workshop.backbones["fp32"].anatomy
    names = trained_names(anatomy, assignment)
    state = GlobalState(adapter=Adapter(weights=pretrained(anatomy.model, names)))
    return replace(plain, sent=with_own_weights(anatomy, assignment, state, plain.sent))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "bert"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_pack_trains_as_each_client_alone(family, tuning):
    if family in ("llama", "qwen3") and tuning == "bitfit":
        pytest.skip("these families have no biases")
    workshop = build(family, SIZES, SGD)
    jobs = [job_of(workshop, family, client, assigned(tuning)) for client in range(3)]
    (pack,) = form_packs(jobs, 8)
    together = train_pack(workshop, pack)
    for own, update in zip(jobs, together, strict=True):
        (alone,) = train_pack(workshop, [own])
        assert update.delta.weights.keys() == set(own.sent.weights)
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_full_fine_tuning_is_what_torch_does_with_the_model_itself(family):
    workshop = build(family, [3], SGD)
    own = job_of(workshop, family, 0, assigned("full", max_steps=1))
    (update,) = train_pack(workshop, [own])
    model = workshop.backbones["fp32"].anatomy.model
    for name in own.sent.weights:
        model.get_parameter(name).requires_grad_(True)
    batch = workshop.pool.batch(workshop.partitions[0], 24)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    head = {name: tensor.clone().requires_grad_() for name, tensor in own.sent.head.items()}
    if num_labels(family):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = functional.cross_entropy(pooled @ head["weight"].T + head["bias"], batch["label"])
    else:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        labels = ids.masked_fill(mask == 0, -100)[:, 1:]
        rows = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        loss = (rows.sum(1) / (labels != -100).sum(1)).mean()
    loss.backward()
    for name, moved in update.delta.weights.items():
        expected = -SGD.learning_rate * model.get_parameter(name).grad
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


def case_of(family, tuning, **changes):
    shape = WorkShape(rows=3, tokens=16, attention="memory_efficient")
    return Case(family=family, assignment=assigned(tuning, **changes), shape=shape, optimizer=ADAMW)


@pytest.mark.parametrize(
    ("family", "tuning", "recompute"),
    [
        ("bert", "full", False),
        ("bert", "top", True),
        ("bert", "bitfit", False),
        ("gpt2", "full", True),
        ("llama", "full", False),
        ("qwen3", "top", False),
    ],
)
def test_a_footprint_is_that_of_the_real_step(family, tuning, recompute):
    case = case_of(family, tuning, recompute=recompute)
    workshop, own = real(case)
    footprint, seen = tracer(case, workshop)(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.02)
    (update,) = train_pack(workshop, [own])
    assert footprint.up_bytes == wire_bytes(update.delta.tensors())


def test_what_is_not_trained_has_no_backward_pass_and_what_is_trained_is_not_held_twice():
    top, every = (
        tracer(case, real(case)[0])(case.assignment, case.shape)
        for case in (case_of("bert", "top"), case_of("bert", "full"))
    )
    assert top.backward_flops < 0.6 * every.backward_flops
    assert top.held_bytes["block.0"] > 0
    assert "block.3" not in top.held_bytes
    # Of the whole model nothing is frozen but two buffers of 1024 positions, 8 bytes each.
    assert sum(every.held_bytes.values()) == 2 * 1024 * 8


def test_a_module_of_unknown_arithmetic_is_refused_with_its_name():
    anatomy = build("vit", [3], SGD).backbones["fp32"].anatomy
    names = [name for name, _ in anatomy.model.named_parameters() if "patch_embeddings" in name]
    with pytest.raises(
        Exception, match=r"patch_embeddings.*cannot be trained as it is; leave the stem frozen"
    ):
        attach_weight_sites(anatomy, names)


def test_words_tell_what_is_trained():
    assert str(assigned("full")) == "all weights of all 4 blocks and the stem, batch 3"
    assert str(assigned("top")) == "all weights of 2 of 4 blocks, batch 3"
    assert str(assigned("bitfit")) == "biases of all 4 blocks, batch 3"
    assert Assignment.from_json(assigned("full").to_json()) == assigned("full")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": True, "blocks": (0,)}, "Under a cut the server's weights are frozen"),
        ({"blocks": (0, 1)}, "Weights tell of each of 2 executed blocks"),
        (
            {"adapter": Weights(part="all", trained=(True, False, True, True), stem=True)},
            "The stem's weights",
        ),
    ],
)
def test_combinations_that_cannot_be_are_refused(changes, words):
    with pytest.raises(Exception, match=words):
        replace(assigned("full"), **changes)
