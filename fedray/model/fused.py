"""A decoder's norms and rotated attention with one node of autograd each, where transformers' have a dozen.

What these compute is elementwise and reads far more than it calculates, so on a CPU every further pass over a
batch's activations shows: on narrow models they took a tenth of a step. Numbers differ from transformers'
by rounding. The modules, their names and their weights stay as they were.

Letters of shapes: N rows, T tokens, D the width that is normed, H head width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fedray.model.attention import MEMORY_EFFICIENT, fedray_memory_efficient
from fedray.model.families import Cache


class FusedNorm:
    """Takes the place of an RMS norm's ``forward`` (1910.07467); other dtypes go the plain way."""

    def __init__(self, module: nn.Module) -> None:
        """Args: module: with ``weight`` [D] and ``variance_epsilon``."""
        self.module = module
        self.plain = module.forward
        module.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if x.dtype != torch.float32:
            return cast(Tensor, self.plain(x))
        answer: Tensor = _Normed.apply(x, self.module.weight, self.module.variance_epsilon)  # type: ignore[no-untyped-call]
        return answer


class FusedAttention:
    """Takes the place of a rotating attention's ``forward``: of Llama, Mistral, Qwen2 or Qwen3.

    The eager kernel, which keeps its scores, goes transformers' own way.
    """

    def __init__(self, module: nn.Module) -> None:
        """Args: module: with ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``; Qwen3's has two norms beside."""
        self.module = module
        self.plain = module.forward
        self.norms = [dict(module.named_children()).get(name, nn.Identity()) for name in ("q_norm", "k_norm")]
        module.forward = self

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: object,  # a block passes what its own attention takes; dropout is off
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [N, T, D], cosine and sine [1, T, H]; gives [N, T, D] and no scores."""
        module: Any = self.module
        if module.config._attn_implementation != MEMORY_EFFICIENT:
            scored: tuple[Tensor, Tensor | None] = self.plain(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
            )
            return scored
        heads = (*hidden_states.shape[:-1], -1, module.head_dim)
        query, key, value = (
            project(hidden_states).view(heads) for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        cosine, sine = (table.unsqueeze(-2) for table in position_embeddings)
        turned = [rotated(norm(x), cosine, sine) for norm, x in zip(self.norms, (query, key), strict=True)]
        query, key, value = (x.transpose(1, 2) for x in (*turned, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        answer = fedray_memory_efficient(module, query, key, value, attention_mask, module.scaling)[0]
        merged: Tensor = module.o_proj(answer.reshape(*heads[:-2], -1))
        return merged, None


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (2104.09864), the halves of a head being the pairs' two numbers.

    Args:
        x: [N, T, heads, H].
        cosine: of the angles, [1, T, 1, H]; both halves alike.
        sine: the same.
    """
    return cast(Tensor, _Rotated.apply(x, cosine, sine))  # type: ignore[no-untyped-call]


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        of_weight = (grads[0] * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        grad = grads[0] * weight
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.addcmul_(normed, along, value=-1).mul_(scale), of_weight, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(grads[0], cosine, sine, -1), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    """By the angles, or back: the transpose of a rotation is the one by the opposite angle."""
    half = x.shape[-1] // 2
    answer: Tensor = x * cosine
    answer[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-direction)
    answer[..., half:].addcmul_(x[..., :half], sine[..., half:], value=direction)
    return answer


def fuse_decoder(backbone: nn.Module) -> None:
    """Fuse every norm and attention of a decoder that rotates; whose forward was replaced before stays."""
    for module in backbone.modules():
        if "forward" in vars(module):
            continue
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            FusedNorm(module)
        elif name.endswith("Attention") and hasattr(module, "o_proj"):
            FusedAttention(module)
