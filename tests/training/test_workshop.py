"""A model put together from arrays is the model that they were taken from, on the same memory."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from fedray.model.load import empty_backbone
from fedray.training.workshop import arrays_of, fill
from shop import SIZES, WIDE

KINDS = {
    "bert": ("classification", BertConfig(**WIDE)),
    "gpt2": ("causal_lm", GPT2Config(**SIZES, tie_word_embeddings=True)),
    "llama": ("causal_lm", LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=True)),
    "untied": ("causal_lm", LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=False)),
}


def built(kind, dtype):
    torch.manual_seed(4)
    head, config = KINDS[kind]
    loader = AutoModel if head == "classification" else AutoModelForCausalLM
    options = {"add_pooling_layer": False} if kind == "bert" else {}
    model = loader.from_config(config, attn_implementation="eager", dtype=dtype, **options)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_a_model_comes_back_bit_for_bit_on_the_same_memory(kind, dtype):
    head, config = KINDS[kind]
    model = built(kind, torch.float32 if dtype == "fp32" else torch.bfloat16)
    arrays = arrays_of(model)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    again = empty_backbone(config, head, dtype)
    fill(again, arrays, "cpu")
    ours, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (again, model))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])
        assert tensor.data_ptr() == theirs[name].data_ptr()
        assert not tensor.requires_grad
    ids = torch.arange(1, 13).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(again(**batch)[0], model(**batch)[0])


@torch.no_grad()
def test_tied_weights_travel_once_and_stay_tied():
    model = built("llama", torch.float32)
    arrays = arrays_of(model)
    assert "lm_head.weight" not in arrays
    again = empty_backbone(KINDS["llama"][1], "causal_lm")
    fill(again, arrays, "cpu")
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_arrays_that_may_not_be_written_make_a_model_without_a_warning():
    model = built("bert", torch.float32)
    arrays = {name: array.copy() for name, array in arrays_of(model).items()}
    for array in arrays.values():
        array.flags.writeable = False
    again = empty_backbone(KINDS["bert"][1], "classification")
    fill(again, arrays, "cpu")
    assert again.embeddings.word_embeddings.weight.data_ptr() == (
        arrays["embeddings.word_embeddings.weight"].ctypes.data
    )
