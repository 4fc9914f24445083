"""PEFT itself loads what we write and answers with the same logits."""

import json
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
)

from fedray.adapter import Adapter, Factors
from fedray.errors import ModelError
from fedray.model.anatomy import dissect
from fedray.model.export import CONFIG, HEAD, WEIGHTS, folded, load_adapter, save_adapter

# PEFT reads a name that transformers is about to drop; its own warnings about missing keys stay errors.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
VIT = ViTConfig(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=24,
    image_size=4,
    patch_size=2,
)
MODELS = {
    "bert": (AutoModel, BertConfig(**SMALL, intermediate_size=24), {"add_pooling_layer": False}),
    "gpt2": (AutoModelForCausalLM, GPT2Config(**SMALL), {}),
    "gpt2_backbone": (AutoModel, GPT2Config(**SMALL), {}),
    "llama": (
        AutoModelForCausalLM,
        LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2),
        {},
    ),
    "vit": (AutoModel, VIT, {"add_pooling_layer": False}),
    "vit_classifier": (AutoModelForImageClassification, VIT, {}),
}
TARGETS = {
    "bert": ("query", "dense"),
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "v_proj", "down_proj"),
    "vit": ("q_proj", "v_proj", "fc1"),
}
RANKS = (0, 2, 5)  # by block: frozen, and two unlike ranks


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    loader, config, options = MODELS[name]
    return loader.from_config(config, **options).eval()


def factors_of(model: PreTrainedModel, site: str, rank: int, scale: float) -> Factors:
    weight = dissect(model).backbone.get_submodule(site).weight
    outputs, inputs = weight.shape[::-1] if "c_" in site else weight.shape
    return Factors(a=torch.randn(rank, inputs), b=torch.randn(outputs, rank), scale=scale)


def mixed(model: PreTrainedModel, name: str, scale: float = 0.3) -> Adapter:
    torch.manual_seed(7)
    anatomy = dissect(model)
    sites = [(i, site) for i in range(3) for site in anatomy.sites(i, TARGETS[name.split("_")[0]])]
    return Adapter(
        factors={
            site: factors_of(model, site, RANKS[i] + (site.endswith("v_proj") and RANKS[i] > 0), scale)
            for i, site in sites
        },
        head={"weight": torch.randn(3, 16), "bias": torch.randn(3)},
    )


@torch.no_grad()
def answers(model: torch.nn.Module) -> Tensor:
    if model.config.model_type == "vit":
        return model(pixel_values=torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4))[0]
    ids = torch.arange(12).reshape(2, 6)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]


@torch.no_grad()
def with_dense_products(model: PreTrainedModel, *parts: dict[str, Factors]) -> Tensor:
    """What the model answers with every ``scale * b @ a`` added to its weights by hand."""
    backbone = dissect(model).backbone
    for part in parts:
        for site, f in part.items():
            product = f.scale * f.b @ f.a
            backbone.get_submodule(site).weight += product.T if "c_" in site else product
    return answers(model)


@pytest.mark.parametrize("name", list(MODELS))
def test_peft_loads_unlike_ranks_and_answers_the_same(name: str, tmp_path: Path) -> None:
    adapter = mixed(build(name), name)
    assert {f.rank for f in adapter.factors.values()} >= {0, 2, 5}
    save_adapter(adapter, tmp_path / "adapter", model=build(name), base_name="tiny")
    loaded = PeftModel.from_pretrained(build(name), tmp_path / "adapter")
    expected = with_dense_products(build(name), dict(adapter.factors))
    assert (expected - answers(build(name))).abs().max() > 0.1
    torch.testing.assert_close(answers(loaded), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_changes_kept_beside_the_base_are_folded_in(name: str, tmp_path: Path) -> None:
    model = build(name)
    adapter = mixed(model, name)
    shared, frozen = [next(s for s, f in adapter.factors.items() if f.rank == rank) for rank in (5, 0)]
    delta = {shared: factors_of(model, shared, 3, 1.7), frozen: factors_of(model, frozen, 2, 0.9)}
    save_adapter(adapter, tmp_path / "adapter", model=model, base_name="tiny", base_delta=delta)
    loaded = PeftModel.from_pretrained(build(name), tmp_path / "adapter")
    expected = with_dense_products(build(name), dict(adapter.factors), delta)
    torch.testing.assert_close(answers(loaded), expected, rtol=1e-5, atol=1e-5)
    ranks = {site: f.rank for site, f in load_adapter(tmp_path / "adapter").factors.items()}
    assert (ranks[shared], ranks[frozen]) == (8, 2)


@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    adapter = mixed(build(name), name, scale=2.0)
    save_adapter(adapter, tmp_path / "adapter", model=build(name), base_name="tiny")
    loaded = load_adapter(tmp_path / "adapter")
    kept = {site: f for site, f in adapter.factors.items() if f.rank}
    assert loaded.factors.keys() == kept.keys()
    assert all(loaded.factors[site].scale == f.scale for site, f in kept.items())
    assert all(torch.equal(loaded.factors[site].a, f.a) for site, f in kept.items())
    assert all(torch.equal(loaded.factors[site].b, f.b) for site, f in kept.items())
    assert all(torch.equal(loaded.head[part], tensor) for part, tensor in adapter.head.items())


@pytest.mark.parametrize("name", list(MODELS))
def test_a_head_trained_alone_still_gives_a_folder_that_peft_loads(name: str, tmp_path: Path) -> None:
    head = {"weight": torch.ones(3, 16)}
    save_adapter(Adapter(head=head), tmp_path / "adapter", model=build(name), base_name="tiny")
    loaded = PeftModel.from_pretrained(build(name), tmp_path / "adapter")
    assert torch.equal(answers(loaded), answers(build(name)))
    read = load_adapter(tmp_path / "adapter")
    assert (read.factors, list(read.head)) == ({}, ["weight"])


@given(
    ranks=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    scales=st.tuples(st.floats(0.01, 8), st.floats(0.01, 8)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_folding_adds_the_products(ranks: tuple[int, int], scales: tuple[float, float], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    parts = [
        Factors(
            a=torch.randn(rank, 6, generator=draw, dtype=torch.float64),
            b=torch.randn(5, rank, generator=draw, dtype=torch.float64),
            scale=scale,
        )
        for rank, scale in zip(ranks, scales, strict=True)
    ]
    whole = folded(Adapter(factors={"s": parts[0]}), {"s": parts[1]}).factors
    product = whole["s"].scale * whole["s"].b @ whole["s"].a if whole else torch.zeros(5, 6).double()
    by_hand = sum(part.scale * part.b @ part.a for part in parts)
    torch.testing.assert_close(product, by_hand, rtol=1e-12, atol=1e-12)
    assert sum(ranks) == (whole["s"].rank if whole else 0)


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        save_adapter(mixed(build("bert"), "bert"), tmp_path / folder, model=build("bert"), base_name="tiny")
    assert all(
        (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes()
        for f in (CONFIG, WEIGHTS, HEAD)
    )
    targets = json.loads((tmp_path / "one" / CONFIG).read_text())["target_modules"]
    assert targets == sorted(targets)  # a set's own order changes with PYTHONHASHSEED


def test_a_full_disk_leaves_the_earlier_adapter_and_nothing_half_written(tmp_path: Path) -> None:
    model = build("gpt2")
    small = Adapter(head={"weight": torch.ones(2, 2)})
    save_adapter(small, tmp_path / "adapter", model=model, base_name="tiny")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, hard)
    )  # the kernel refuses larger files, as a full disk does
    try:
        with pytest.raises(
            ModelError, match=r"could not be written to .* nothing of it was kept. Free some space"
        ):
            save_adapter(mixed(model, "gpt2"), tmp_path / "adapter", model=model, base_name="tiny")
        with pytest.raises(ModelError, match="could not be written"):
            save_adapter(mixed(model, "gpt2"), tmp_path / "other", model=model, base_name="tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert load_adapter(tmp_path / "adapter").head.keys() == {"weight"}


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="holds things that are no adapter"):
        save_adapter(Adapter(), tmp_path, model=build("bert"), base_name="tiny")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter = mixed(build("gpt2"), "gpt2")
    with pytest.raises(ModelError, match=r"has factors for 'h.1.attn.c_attn', which the model does not have"):
        save_adapter(adapter, tmp_path / "adapter", model=build("bert"), base_name="tiny")
    turned = {s: Factors(a=f.b.T, b=f.a.T, scale=1.0) for s, f in adapter.factors.items() if f.rank}
    with pytest.raises(
        ModelError, match=r"'transformer.h.1.attn.c_attn' is 48 x 16 in the model; .* is 16 x 48"
    ):
        save_adapter(Adapter(factors=turned), tmp_path / "adapter", model=build("gpt2"), base_name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_torn_or_foreign_adapter_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    with pytest.raises(ModelError, match="holds no adapter written by fedray"):
        load_adapter(place)
    save_adapter(mixed(build("bert"), "bert"), place, model=build("bert"), base_name="tiny")
    whole = safetensors.torch.load_file(place / WEIGHTS)
    key = next(iter(whole))
    less = {name: tensor for name, tensor in whole.items() if name != key}
    more = {**whole, "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(1, 16)}
    thinner = {
        **whole,
        key: whole[key][:, :1].contiguous() if "lora_B" in key else whole[key][:1].contiguous(),
    }
    for tensors, sentence in (
        (less, "misses 1 tensors"),
        (more, "should not hold 1 tensors"),
        (thinner, "should have rank"),
    ):
        safetensors.torch.save_file(tensors, place / WEIGHTS)
        with pytest.raises(ModelError, match=sentence):
            load_adapter(place)
    safetensors.torch.save_file(whole, place / WEIGHTS)
    head = safetensors.torch.load_file(place / HEAD)
    safetensors.torch.save_file(head, place / HEAD)
    with pytest.raises(ModelError, match="not written by fedray"):
        load_adapter(place)
    (place / WEIGHTS).write_bytes((place / HEAD).read_bytes()[:20])
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(place)
