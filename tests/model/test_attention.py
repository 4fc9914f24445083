"""Two kernels, one answer: forward and backward, on the device and in shapes on meta."""

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
)

from fedray.model.anatomy import dissect
from fedray.model.attention import fedray_memory_efficient, use_attention

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": BertConfig(**SMALL, intermediate_size=24),
    "gpt2": GPT2Config(**SMALL, scale_attn_by_inverse_layer_idx=True),
    "llama": LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2),
    "vit": ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, image_size=[2, 16], patch_size=2
    ),
}


def build(name: str, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    loader = AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification
    with torch.device(device):
        return loader.from_config(CONFIGS[name], attn_implementation="eager")


def rows(side: str) -> tuple[Tensor, Tensor]:
    """Rows of 9, 4 and no real tokens: the last is what pads a batch to its shape."""
    mask = (torch.arange(9)[None] < torch.tensor([9, 4, 0])[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    torch.manual_seed(1)
    return torch.randint(1, 40, mask.shape) * mask, mask


def inputs(name: str, side: str = "right") -> tuple[Tensor, Tensor]:
    """The same rows, or as many images of as many tokens, none of them padding."""
    ids, mask = rows(side)
    return (torch.randn(3, 3, 2, 16), torch.ones_like(mask)) if name == "vit" else (ids, mask)


def step(model: PreTrainedModel, kernel: str, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Hidden states and the gradient of every weight, for a loss over every position, padding too."""
    use_attention(model, kernel)
    model.zero_grad()
    anatomy = dissect(model)
    flow = anatomy.stem(ids, mask)
    hidden = flow.hidden
    for index in range(anatomy.num_blocks):
        hidden = anatomy.block(index, hidden, flow.context)
    hidden.sin().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), **grads}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_both_kernels_agree_to_1e_5_forward_and_backward_even_at_padding(name: str, side: str) -> None:
    model = build(name)
    eager, efficient = (step(model, kernel, *inputs(name, side)) for kernel in ("eager", "memory_efficient"))
    assert len(eager) > 10
    assert efficient.keys() == eager.keys()
    for path, tensor in eager.items():
        torch.testing.assert_close(efficient[path], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_switch_reaches_every_block_and_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    scores = []
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda *a, **k: scores.append(1) or softmax(*a, **k))
    counts = []
    for kernel in ("eager", "memory_efficient", "eager"):
        scores.clear()
        step(model, kernel, *inputs(name))
        counts.append(len(scores))
    assert counts == [2, 0, 2]  # eager stores one score matrix a block, the other none


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_the_model_s_own_forward_keeps_its_padding_mask_under_our_kernel(name: str) -> None:
    model = build(name).eval()
    ids, mask = inputs(name)
    given = {model.main_input_name: ids[:2], "attention_mask": mask[:2]}
    eager = model(**given).logits
    use_attention(model, "memory_efficient")
    torch.testing.assert_close(model(**given).logits, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "memory_efficient"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_meta_trace_gives_the_shapes_of_the_real_step(name: str, kernel: str) -> None:
    ids, mask = inputs(name)
    real = step(build(name), kernel, ids, mask)
    traced = step(build(name, "meta"), kernel, ids.to("meta"), mask.to("meta"))
    assert {path: t.shape for path, t in traced.items()} == {path: t.shape for path, t in real.items()}
    assert all(t.is_meta for t in traced.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_agree_within_their_own_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, dtype=dtype) for heads in (4, 2, 2))
    mask = torch.zeros(2, 1, 1, 5, dtype=dtype)
    mask[1, ..., 3:] = torch.finfo(dtype).min
    out, scores = fedray_memory_efficient(torch.nn.Identity(), query, key, value, mask, 0.3)
    wide = [t.double().repeat_interleave(2, dim=1) for t in (key, value)]
    by_hand = torch.softmax(query.double() @ wide[0].transpose(2, 3) * 0.3 + mask.double(), -1) @ wide[1]
    assert scores is None
    assert out.shape == (2, 5, 4, 8)
    assert (out.double() - by_hand.transpose(1, 2)).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_both_kernels_agree_on_a_gpu(name: str) -> None:
    model = build(name).to("cuda")
    ids, mask = (tensor.to("cuda") for tensor in inputs(name, "left"))
    eager, efficient = (step(model, kernel, ids, mask) for kernel in ("eager", "memory_efficient"))
    for path, tensor in eager.items():
        torch.testing.assert_close(efficient[path], tensor, rtol=1e-3, atol=1e-3)
