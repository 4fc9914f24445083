"""Any model, any cut: head(blocks(stem(x))) is the model's own forward pass, padding included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    ViTConfig,
)

from fedray.errors import ModelError
from fedray.model.anatomy import Anatomy, dissect
from fedray.model.families import known_families
from fedray.model.load import empty_backbone, load_backbone

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"

PAD = 1
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "num_labels": 3,
}
VIT = {key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_labels")}
GQA = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GQA),
    "llama_tied": LlamaConfig(**GQA, tie_word_embeddings=True, attention_bias=True),
    "mistral": MistralConfig(**GQA, sliding_window=16),
    "qwen2": Qwen2Config(**GQA, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": Qwen3Config(**GQA, head_dim=8),
    "gpt2": GPT2Config(**SMALL, scale_attn_by_inverse_layer_idx=True),
    "bert": BertConfig(**SMALL, intermediate_size=24, hidden_dropout_prob=0.5),
    "roberta": RobertaConfig(**SMALL, intermediate_size=24),
    # Two rows of five patches and a class token: 11 tokens an image.
    "vit": ViTConfig(**VIT, image_size=[4, 10], patch_size=2, qkv_bias=False),
}
DECODERS = [name for name in CONFIGS if name not in ("bert", "roberta", "vit")]
LOADERS = {
    "backbone": AutoModel,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
CASES = [(name, head) for name in CONFIGS for head in LOADERS if head != "causal_lm" or name in DECODERS]


def loader(name: str, head: str) -> Any:
    images = name == "vit" and head == "classification"
    return AutoModelForImageClassification if images else LOADERS[head]


def build(name: str, head: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = loader(name, head).from_config(CONFIGS[name], attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():  # initial biases are zero and norms one: make them matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(side: str, vocabulary: int = 40) -> tuple[Tensor, Tensor]:
    """Four rows of 11, 7, 1 and 4 real tokens."""
    torch.manual_seed(1)
    mask = (torch.arange(11)[None] < torch.tensor([11, 7, 1, 4])[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.randint(PAD + 1, vocabulary, mask.shape)
    return torch.where(mask.bool(), ids, PAD), mask


def inputs(name: str, side: str = "right") -> tuple[Tensor, Tensor]:
    """The same rows, or four images, which have no padding."""
    ids, mask = rows(side)
    return (torch.randn(4, 3, 4, 10), torch.ones_like(mask)) if name == "vit" else (ids, mask)


def run(anatomy: Anatomy, ids: Tensor, mask: Tensor, cut: int = 0) -> Tensor:
    flow = anatomy.stem(ids, mask)
    hidden = flow.hidden
    for index in range(cut):
        hidden = anatomy.block(index, hidden, flow.context)
    # What crosses a cut: hidden states and the mask, nothing else of the forward pass.
    context = anatomy.context(hidden, mask)
    for index in range(cut, anatomy.num_blocks):
        hidden = anatomy.block(index, hidden, context)
    return anatomy.head(hidden, flow.context)


def own(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    images = model.main_input_name == "pixel_values"
    answer = model(pixel_values=ids) if images else model(input_ids=ids, attention_mask=mask)
    return answer.logits if "logits" in answer else answer.last_hidden_state


def gap(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """The largest difference at real tokens; what stands at padding is nobody's business."""
    difference = (ours - theirs).detach().abs()
    return float((difference[mask.bool()] if difference.ndim == 3 else difference).max())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("name", "head"), CASES)
@torch.no_grad()
def test_every_cut_gives_what_the_model_itself_gives(name: str, head: str, side: str) -> None:
    model = build(name, head)
    anatomy = dissect(model)
    assert anatomy.num_blocks == 3
    ids, mask = inputs(name, side)
    theirs = own(model, ids, mask)
    for cut in range(anatomy.num_blocks + 1):
        assert gap(run(anatomy, ids, mask, cut), theirs, mask) < 1e-6


@torch.no_grad()
def test_minilm_itself_agrees_at_every_cut() -> None:
    model, _ = load_backbone("minilm", "classification")
    anatomy = dissect(model)
    ids, mask = rows("right", vocabulary=30000)
    theirs = own(model, ids, mask)
    for cut in range(7):
        assert gap(run(anatomy, ids, mask, cut), theirs, mask) < 1e-6


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K decoder is not beside this checkout")
@torch.no_grad()
def test_a_pretrained_decoder_agrees_at_every_cut() -> None:
    model, _ = load_backbone(str(STORIES), "causal_lm")
    anatomy = dissect(model)
    ids, mask = rows("right", vocabulary=512)
    theirs = own(model, ids, mask)
    assert theirs.abs().max() > 5  # a trained model has opinions; agreement on zeros would prove nothing
    for cut in range(6):
        # its logits reach 20, where neighbouring float32 numbers are 2e-6 apart
        assert gap(run(anatomy, ids, mask, cut), theirs, mask) < 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_gradients_agree_and_one_block_can_be_recomputed(name: str) -> None:
    model = build(name, "classification")
    anatomy = dissect(model)
    ids, mask = inputs(name)
    own(model, ids, mask).square().sum().backward()
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    flow = anatomy.stem(ids, mask)
    hidden = flow.hidden
    for index in range(anatomy.num_blocks):
        hidden = checkpoint(anatomy.block, index, hidden, flow.context, use_reentrant=False)
    anatomy.head(hidden, flow.context).square().sum().backward()
    for path, parameter in model.named_parameters():
        if path in theirs:
            torch.testing.assert_close(parameter.grad, theirs[path], rtol=1e-4, atol=1e-5)


class Values(TorchDispatchMode):
    """Counts looks at a tensor's values."""

    looks = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.looks += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_same_code_runs_on_the_meta_device_without_a_look_at_values(name: str, head: str) -> None:
    with torch.device("meta"):
        model = loader(name, head).from_config(CONFIGS[name], attn_implementation="eager")
    ids, mask = inputs(name)
    real = dissect(build(name, head))
    with Values() as values:
        wanted = run(real, ids, mask).shape
        shape = run(dissect(model), ids.to("meta"), mask.to("meta")).shape
    assert values.looks == 0
    assert shape == wanted


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_row_of_padding_alone_gives_numbers(name: str, dtype: torch.dtype) -> None:
    model = build(name, "backbone").to(dtype)
    ids, mask = inputs(name)
    ids[2], mask[2] = PAD, 0
    out = run(dissect(model), ids, mask)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_pieces_hold_every_byte_once(name: str, head: str) -> None:
    model = build(name, head)
    pieces = dissect(model).pieces()
    assert list(pieces) == ["stem", "block.0", "block.1", "block.2", "head"]
    held = [held for piece in pieces.values() for held in piece]
    assert sorted(held) == sorted(
        [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]
    )
    assert len({len(pieces[f"block.{i}"]) for i in range(3)}) == 1
    assert any("embed" in held or "wte" in held for held in pieces["stem"])


def test_a_tied_embedding_is_held_by_the_stem_alone() -> None:
    pieces = dissect(build("llama_tied", "causal_lm")).pieces()
    assert "model.embed_tokens.weight" in pieces["stem"]
    assert pieces["head"] == ("model.norm.weight",)
    assert "lm_head.weight" in dissect(build("llama", "causal_lm")).pieces()["head"]


@pytest.mark.parametrize("head", ["backbone", "causal_lm", "classification"])
def test_sites_are_paths_in_the_backbone_whatever_the_head(head: str) -> None:
    anatomy = dissect(build("gpt2", head))
    assert anatomy.block_path(1) == "h.1."
    linears = anatomy.linears(1)
    assert list(linears) == ["h.1.attn.c_attn", "h.1.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]
    assert all(anatomy.backbone.get_submodule(site) is linear for site, linear in linears.items())
    assert anatomy.sites(1, anatomy.family.targets) == ["h.1.attn.c_attn"]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_default_targets_exist_in_every_block(name: str) -> None:
    anatomy = dissect(build(name, "backbone"))
    assert all(anatomy.sites(i, anatomy.family.targets) for i in range(3))


def test_dropout_of_the_model_is_off() -> None:
    model = build("bert", "backbone").train()
    anatomy = dissect(model)
    assert torch.equal(run(anatomy, *rows("right")), run(anatomy, *rows("right")))


def test_a_window_shorter_than_the_rows_is_refused() -> None:
    for name in ("mistral", "qwen2"):
        anatomy = dissect(build(name, "backbone"))
        ids = torch.full((1, 17), 3)
        with pytest.raises(ModelError, match=r"Rows of 17 tokens were given; .* takes at most 16"):
            anatomy.stem(ids, torch.ones_like(ids))


@pytest.mark.parametrize(("name", "limit"), [("bert", 32), ("roberta", 30), ("gpt2", 32)])
@torch.no_grad()
def test_the_longest_row_is_what_the_positions_allow(name: str, limit: int) -> None:
    anatomy = dissect(build(name, "backbone"))
    ids = torch.full((1, limit + 1), 3)
    assert run(anatomy, ids[:, :limit], torch.ones(1, limit)).shape == (1, limit, 16)
    with pytest.raises(ModelError, match=f"takes at most {limit}"):
        anatomy.stem(ids, torch.ones_like(ids))


def test_an_image_is_as_long_as_its_patches_and_a_class_token() -> None:
    # 2010.11929, section 3.1: N = H W / P^2 patches and one class token; ViT-B/16 at 224 has 14 x 14 patches.
    with torch.device("meta"):
        base = AutoModel.from_config(ViTConfig(num_hidden_layers=1))
    assert dissect(base).max_tokens == 14 * 14 + 1
    anatomy = dissect(build("vit", "backbone"))
    assert anatomy.max_tokens == 2 * 5 + 1 == anatomy.stem(*inputs("vit")).hidden.shape[1]


def test_a_head_at_the_class_token_is_read_without_the_others() -> None:
    mask = torch.ones(2, 5)
    assert dissect(build("vit", "backbone")).read_by_classifier(mask) is None
    assert dissect(build("bert", "backbone")).read_by_classifier(mask) is mask


def test_what_is_not_known_is_refused_with_the_names_of_what_is() -> None:
    with torch.device("meta"):
        opt = AutoModel.from_config(OPTConfig(num_hidden_layers=1))
        masked = BertForMaskedLM(CONFIGS["bert"])
        causal_bert = AutoModelForCausalLM.from_config(CONFIGS["bert"])
        dynamic = AutoModel.from_config(
            LlamaConfig(**GQA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
        )
    with pytest.raises(
        ModelError, match=r"'opt'; known are bert, gpt2, llama, mistral, qwen2, qwen3, roberta, vit\. To add"
    ):
        dissect(opt)
    with pytest.raises(ModelError, match="BertForMaskedLM has a head that is not known"):
        dissect(masked)
    with pytest.raises(
        ModelError, match="'bert' model was asked for a causal_lm head; its family has classification"
    ):
        dissect(causal_bert)
    with pytest.raises(
        ModelError, match="'vit' model was asked for a causal_lm head; its family has classification"
    ):
        empty_backbone(CONFIGS["vit"], "causal_lm")
    with pytest.raises(ModelError, match="rope_type 'dynamic' depends on a batch's values"):
        dissect(dynamic)
    with pytest.raises(ModelError, match=r"No linear is called q_proj in block 0 .* c_attn, c_fc, c_proj"):
        dissect(build("gpt2", "backbone")).sites(0, ("q_proj",))


def test_several_rows_without_a_pad_token_are_refused_as_the_model_does() -> None:
    model = build("gpt2", "classification")
    model.config = GPT2Config(**{**SMALL, "pad_token_id": None})
    ids, mask = rows("right")
    with pytest.raises(ModelError, match=r"4 rows cannot be classified together: set config\.pad_token_id"):
        run(dissect(model), ids, mask)
    assert gap(run(dissect(model), ids[:1], mask[:1]), own(model, ids[:1], mask[:1]), mask[:1]) < 1e-6


def test_a_family_is_one_file_under_80_lines() -> None:
    files = [
        p
        for p in (Path(__file__).parents[2] / "fedray/model/families").glob("*.py")
        if p.name != "__init__.py"
    ]
    assert len(files) == len({id(family) for family in known_families().values()}) >= 3
    assert all(len(file.read_text().splitlines()) < 80 for file in files)
