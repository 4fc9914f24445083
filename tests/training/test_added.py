"""Prompts and IA3: packed as alone, as PEFT and torch train them, traced, averaged, and loaded by PEFT."""

from dataclasses import replace

import pytest
import torch
from peft import IA3Config, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional

from fedray.adapter import WEIGHTS, Adapter, GlobalState
from fedray.aggregation.presets import make_aggregation
from fedray.assignment import Assignment, weights_on_top
from fedray.config import load_config
from fedray.cost import WorkShape
from fedray.errors import ConfigError, ModelError
from fedray.menu import Grid, build_menu
from fedray.model.added import PROMPT, is_added
from fedray.model.export_added import save_added
from fedray.model.prefix import PREFIX, keys_and_values
from fedray.model.wire import wire_bytes
from fedray.trained import Prompt, Weights
from fedray.training.audit import audit
from fedray.training.optimizer import LocalOptimizer
from fedray.training.own_weights import initial_weights, refuse_long_prompts, with_own_weights
from fedray.training.packed import Course, PackedForward
from fedray.training.packs import form_packs
from fedray.training.train import train_pack
from lone import Case, real, tracer
from shop import BLOCKS, CONFIGS, build, job, num_labels

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
SGD = LocalOptimizer(optim="sgd", learning_rate=0.05, max_grad_norm=None)
KINDS = {
    "prompt": Prompt(num_tokens=3),
    "prefix": Prompt(num_tokens=3, deep=True),
    "ia3": weights_on_top(BLOCKS, BLOCKS, "ia3"),
}
FAMILIES = ["llama", "qwen3", "gpt2", "bert"]


def assigned(adapter, **changes):
    return Assignment(blocks=tuple(range(BLOCKS)), adapter=adapter, **{"batch_size": 3, **changes})


def state_of(anatomy, *assignments):
    """What clients start from; not IA3's ones, which hide whether they rescale at all."""
    weights = initial_weights(anatomy, assignments, 0)
    random = torch.Generator().manual_seed(1)
    moved = {name: t + 0.1 * torch.randn(t.shape, generator=random) for name, t in weights.items()}
    return GlobalState(adapter=Adapter(weights=moved))


def job_of(workshop, family, client, assignment, state=None):
    anatomy = workshop.backbones["fp32"].anatomy
    plain = job(workshop, family, client, assignment)
    start = with_own_weights(anatomy, assignment, state or state_of(anatomy, assignment), plain.sent)
    return replace(plain, sent=start)


def pefts(workshop, family, own):
    """PEFT's model with what was sent in it, and its trained tensors by our names."""
    anatomy = workshop.backbones["fp32"].anatomy
    model = type(anatomy.model)(CONFIGS[family])
    model.load_state_dict({k: v.clone() for k, v in anatomy.model.state_dict().items()}, strict=False)
    model.eval()
    kind = "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"
    if PROMPT in own.sent.weights:
        config = PromptTuningConfig(num_virtual_tokens=3, task_type=kind, num_transformer_submodules=1)
        theirs = get_peft_model(model, config)
        tensors = {PROMPT: theirs.prompt_encoder["default"].embedding.weight}
    elif f"{PREFIX}0" in own.sent.weights:
        config = PrefixTuningConfig(num_virtual_tokens=3, task_type=kind, num_transformer_submodules=1)
        theirs = get_peft_model(model, config)
        whole = theirs.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            whole.copy_(torch.cat([own.sent.weights[f"{PREFIX}{block}"] for block in range(BLOCKS)], dim=1))
        return theirs, {"whole": whole}
    else:
        paths = {name.removesuffix(".ia3_l"): t for name, t in own.sent.weights.items()}
        inner = [path for path, tensor in paths.items() if tensor.shape[0] == 1]
        config = IA3Config(
            target_modules=list(paths),
            feedforward_modules=inner,
            task_type=kind,
            fan_in_fan_out=family == "gpt2",
        )
        theirs = get_peft_model(model, config)
        tensors = {
            f"{p}.ia3_l": theirs.get_submodule(f"base_model.model.{p}").ia3_l["default"] for p in paths
        }
    assert tensors.keys() == own.sent.weights.keys()
    with torch.no_grad():
        for name, tensor in tensors.items():
            assert tensor.shape == own.sent.weights[name].shape
            tensor.copy_(own.sent.weights[name])
    return theirs, tensors


def loss_of(theirs, family, own, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if num_labels(family):
        hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state[:, -ids.shape[1] :]
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.cross_entropy(
            pooled @ own.sent.head["weight"].T + own.sent.head["bias"], batch["label"]
        )
    logits = theirs(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] : -1]
    labels = ids.masked_fill(mask == 0, -100)[:, 1:]
    rows = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (rows.sum(1) / (labels != -100).sum(1)).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_steps_where_peft_and_torch_take_it(family, kind):
    workshop = build(family, [3], SGD)
    own = job_of(workshop, family, 0, assigned(KINDS[kind], max_steps=1))
    (update,) = train_pack(workshop, [own])
    theirs, tensors = pefts(workshop, family, own)
    loss_of(theirs, family, own, workshop.pool.batch(workshop.partitions[0], 24)).backward()
    if kind == "prefix":
        parts = tensors["whole"].grad.chunk(BLOCKS, dim=1)
        for block, part in enumerate(parts):
            moved = update.delta.weights[f"{PREFIX}{block}"]
            torch.testing.assert_close(moved, -0.05 * part, rtol=1e-3, atol=1e-6)
        return
    for name, tensor in tensors.items():
        torch.testing.assert_close(update.delta.weights[name], -0.05 * tensor.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_trains_as_each_client_alone(family, kind):
    workshop = build(family, [6, 9, 4], SGD)
    jobs = [job_of(workshop, family, client, assigned(KINDS[kind])) for client in range(3)]
    (pack,) = form_packs(jobs, 8)
    for own, update in zip(jobs, train_pack(workshop, pack), strict=True):
        (alone,) = train_pack(workshop, [own])
        for name, moved in update.delta.tensors().items():
            torch.testing.assert_close(moved, alone.delta.tensors()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "kind", "recompute"),
    [
        ("bert", "prompt", False),
        ("llama", "prompt", True),
        ("bert", "ia3", True),
        ("gpt2", "ia3", False),
        ("qwen3", "prefix", False),
        ("bert", "prefix", True),
    ],
)
def test_a_footprint_is_that_of_the_real_step(family, kind, recompute):
    case = Case(
        family=family,
        assignment=assigned(KINDS[kind], recompute=recompute),
        shape=WorkShape(rows=3, tokens=16, attention="memory_efficient"),
        optimizer=LocalOptimizer(learning_rate=0.01),
    )
    workshop, own = real_with_added(case)
    footprint, seen = tracer(case, workshop)(case.assignment, case.shape), audit(workshop, own)
    assert footprint.peak_bytes == pytest.approx(seen.peak_bytes, rel=0.02)
    (update,) = train_pack(workshop, [own])
    assert footprint.up_bytes == wire_bytes(update.delta.tensors())


def real_with_added(case):
    plain = replace(case, assignment=replace(case.assignment, adapter=weights_on_top(BLOCKS, BLOCKS, "bias")))
    workshop, own = real(plain)
    anatomy = workshop.backbones["fp32"].anatomy
    start = replace(own.sent, weights=initial_weights(anatomy, [case.assignment], 0))
    return workshop, replace(own, assignment=case.assignment, sent=start)


@pytest.mark.parametrize(("deep", "name"), [(False, PROMPT), (True, f"{PREFIX}1")])
def test_clients_of_unlike_prompts_are_averaged_over_who_has_each_token(deep, name):
    workshop = build("bert", [3, 3], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    both = [assigned(Prompt(num_tokens=length, deep=deep)) for length in (2, 5)]
    plain = job(workshop, "bert", 0, both[0]).sent
    state = state_of(anatomy, *both)
    state = replace(state, adapter=replace(state.adapter, head=plain.head))
    short, long = (with_own_weights(anatomy, entry, state, Adapter(head=plain.head)) for entry in both)
    assert torch.equal(short.weights[name], state.adapter.weights[name][:2])
    total = make_aggregation("coverage_mean", {}).start(state)
    for start, change, weight in ((short, 1.0, 1.0), (long, 4.0, 2.0)):
        moved = {own: torch.full_like(tensor, change) for own, tensor in start.weights.items()}
        head = {own: torch.zeros_like(tensor) for own, tensor in start.head.items()}
        total.add(replace(start, weights=moved, head=head), start, weight)
    moved = total.finish().adapter.weights[name] - state.adapter.weights[name]
    # (1 * 1 + 2 * 4) / 3 where both have a token, 4 where the long one alone has it.
    torch.testing.assert_close(moved[:, 0], torch.tensor([3.0, 3.0, 4.0, 4.0, 4.0]))
    assert torch.equal(
        make_aggregation("coverage_mean", {}).start(state).finish().adapter.weights[name],
        state.adapter.weights[name],
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_gives_the_same_answers_under_peft(family, kind, tmp_path):
    workshop = build(family, [3], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    state = state_of(anatomy, assigned(KINDS[kind]))
    batch = workshop.pool.batch(workshop.partitions[0], 24)
    installed = {WEIGHTS + name: tensor[None] for name, tensor in state.adapter.weights.items()}
    with torch.no_grad():
        ours = PackedForward(workshop.backbones["fp32"], Course(blocks=tuple(range(BLOCKS))), installed, {})(
            batch
        )
    save_added(state.adapter.weights, tmp_path, model=anatomy.model, base_name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == [kind]
    model = type(anatomy.model)(CONFIGS[family])
    model.load_state_dict({k: v.clone() for k, v in anatomy.model.state_dict().items()}, strict=False)
    loaded = PeftModel.from_pretrained(model.eval(), tmp_path / kind)
    with torch.no_grad():
        answer = loaded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    theirs = answer.last_hidden_state if num_labels(family) else answer.logits
    real_tokens = batch["attention_mask"].bool()
    theirs = theirs[:, -real_tokens.shape[1] :]
    torch.testing.assert_close(ours[real_tokens], theirs[real_tokens], rtol=1e-4, atol=1e-5)


def test_a_prompt_begins_as_words_of_the_vocabulary_and_ia3_as_ones():
    anatomy = build("bert", [3], SGD).backbones["fp32"].anatomy
    weights = initial_weights(anatomy, [assigned(adapter) for adapter in KINDS.values()], 0)
    table = anatomy.backbone.get_submodule("embeddings.word_embeddings").weight
    assert all((row == table).all(1).any() for row in weights[PROMPT])
    vectors = {name: t for name, t in weights.items() if name.endswith(".ia3_l")}
    assert all(bool((t == 1).all()) for t in vectors.values())
    # Of BERT keys, values and what goes into the second feed-forward linear, in each block: 16, 16 and 32.
    assert sum(t.numel() for t in vectors.values()) == BLOCKS * (2 * 16 + CONFIGS["bert"].intermediate_size)
    assert all(map(is_added, weights))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "memory_efficient"])
def test_a_decoders_fresh_prefix_answers_as_the_words_it_was_taken_from(family, attention):
    workshop = build(family, [3], SGD)
    anatomy = workshop.backbones["fp32"].anatomy
    ids = torch.tensor([7, 3, 11])
    rows = keys_and_values(anatomy, ids, range(BLOCKS))
    installed = {f"{WEIGHTS}{PREFIX}{block}": own[None] for block, own in rows.items()}
    batch = workshop.pool.batch(workshop.partitions[0], 24)
    course = Course(blocks=tuple(range(BLOCKS)), attention=attention)
    longer = {
        "input_ids": torch.cat([ids.expand(3, -1), batch["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones(3, 3, dtype=torch.int64), batch["attention_mask"]], dim=1),
    }
    with torch.no_grad():
        ours = PackedForward(workshop.backbones["fp32"], course, installed, {})(batch)
        plain = PackedForward(workshop.backbones["fp32"], course, {}, {})(longer)[:, 3:]
    real_tokens = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real_tokens], plain[real_tokens], rtol=1e-4, atol=1e-5)


def test_words_and_json_tell_what_is_trained():
    assert str(assigned(KINDS["prompt"])) == f"prompt of 3 over {BLOCKS} blocks, batch 3"
    assert str(assigned(KINDS["prefix"])) == f"prefix of 3 over {BLOCKS} blocks, batch 3"
    assert str(assigned(KINDS["ia3"])) == f"IA3 vectors of all {BLOCKS} blocks, batch 3"
    for adapter in KINDS.values():
        assert Assignment.from_json(assigned(adapter).to_json()) == assigned(adapter)


def test_the_menu_offers_each_length_once_whatever_the_depths():
    grid = Grid(
        num_blocks=4, targets=("query",), tunings=("prompt",), prompt_tokens=(5, 20), depths=(2, "all")
    )
    assert {entry.adapter for entry in build_menu(grid)} == {Prompt(num_tokens=5), Prompt(num_tokens=20)}
    deep = build_menu(replace(grid, tunings=("prefix",), prompt_tokens=(5,)))
    assert [entry.adapter for entry in deep] == [Prompt(num_tokens=5, deep=True)]
    ia3 = build_menu(replace(grid, tunings=("ia3",)))
    assert [entry.num_trained_blocks for entry in ia3] == [2, 4]


@pytest.mark.parametrize(
    ("adapter", "changes", "words"),
    [
        (KINDS["prompt"], {"split": True, "blocks": (0,)}, "the server serves rows without prompts"),
        (Prompt(num_tokens=0), {}, "A prompt has at least 1 token, found 0"),
        (KINDS["prompt"], {"up_codec": "top10"}, "up_codec top10 owes what it left out"),
        (Weights(part="ia3", trained=(True,) * BLOCKS, stem=True), {}, "the stem has none of that"),
    ],
)
def test_combinations_that_cannot_be_are_refused(adapter, changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(Assignment(blocks=tuple(range(BLOCKS)), adapter=adapter), **changes)


def test_what_a_model_has_no_place_for_is_refused():
    vit = build("vit", [3], SGD).backbones["fp32"].anatomy
    with pytest.raises(ModelError, match="A prompt stands before words, and none go into a vit model"):
        refuse_long_prompts(vit, [assigned(KINDS["prompt"])], 10)
    with pytest.raises(ModelError, match="A prompt stands before words, and none go into a vit model"):
        refuse_long_prompts(vit, [assigned(KINDS["prefix"])], 10)
    with pytest.raises(ModelError, match="Which linears IA3 rescales is not known for vit models"):
        refuse_long_prompts(vit, [assigned(KINDS["ia3"])], 10)
    bert = build("bert", [3], SGD).backbones["fp32"].anatomy
    longest = bert.max_tokens
    with pytest.raises(ConfigError, match=f"before a row of {longest} makes {longest + 3}"):
        refuse_long_prompts(bert, [assigned(KINDS["prompt"])], longest)


def test_dora_is_refused_with_its_reason():
    with pytest.raises(
        ConfigError, match=r"menu\.tunings has no dora, whose weights are divided by the norm"
    ):
        load_config({"menu": {"tunings": ["lora", "dora"]}})
