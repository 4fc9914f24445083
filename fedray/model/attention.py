"""The two attention kernels a device may declare, and switching a model between them.

``eager`` is transformers' own, which keeps the score matrix. ``memory_efficient`` is ours, which does not:
PyTorch's fused kernel for CPUs, named directly because `scaled_dot_product_attention` picks a kernel that
keeps the scores on the meta device and would make every traced footprint too high.
"""

from typing import assert_never

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from fedray.assignment import Attention
from fedray.model.layout import current_layout

MEMORY_EFFICIENT = "fedray_memory_efficient"


def fedray_memory_efficient(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,  # each model passes what its own kernels take; the mask says all of it, dropout is off
) -> tuple[Tensor, None]:
    """Attention without a stored score matrix (FlashAttention, 2205.14135).

    Query [N, heads, T, H], key and value [N, heads or fewer, T, H], additive mask broadcast to
    [N, heads, T, T]; gives [N, T, heads, H] and no scores. Under a `Layout` the three come and the
    answer goes as tokens end to end, [1, heads, X, H] and [1, X, heads, H]; the mask is of the rows.
    """
    layout = current_layout()
    if layout is None:
        return _attended(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    seated = [layout.seat(x.transpose(1, 2)) for x in (query, key, value)]
    answers = []
    for bench, *parts in zip(layout.benches, *seated, strict=True):
        own = attention_mask
        if own is not None:
            own = own[bench.rows][..., : bench.tokens, : bench.tokens]
        q, k, v = (part.transpose(1, 2) for part in parts)
        answers.append(_attended(q, k, v, own, scaling).transpose(1, 2))
    return layout.unseat(answers), None


def _attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type in ("cpu", "meta"):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        answer: Tensor = kernel(query, key, value, 0.0, False, attn_mask=mask, scale=scaling)[0]
        return answer
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


AttentionInterface.register(MEMORY_EFFICIENT, fedray_memory_efficient)
# Without this, transformers' own forward would drop the padding mask under a kernel it does not know.
AttentionMaskInterface.register(MEMORY_EFFICIENT, eager_mask)


def use_attention(model: PreTrainedModel, kernel: Attention) -> None:
    """Make every block of the model attend through this kernel; microseconds, so it may run each step."""
    match kernel:
        case "eager":
            name = "eager"
        case "memory_efficient":
            name = MEMORY_EFFICIENT
        case _:
            assert_never(kernel)
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name  # every block reads this one configuration
