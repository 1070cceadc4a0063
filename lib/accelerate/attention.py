"""Attention as two products and a softmax, which on CPUs takes half the time of PyTorch's fused kernel for small heads.

Shapes: B batch, h heads, Q K tokens, d channels.
"""
import torch
from torch import Tensor

from lib.accelerate.onednn import has_bfloat16


def attention_weights(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale · query · keyᵀ + bias): (B, h, Q, d), (B, h, K, d) -> (B, h, Q, K), in the inputs' precision.

    `bias` broadcasts to (B, h, Q, K).
    """
    scores = query @ (key * scale).transpose(-2, -1)
    bias = bias.to(scores.dtype)
    with torch.autocast("cpu", enabled=False):   # the softmax is float32 inside; autocast would also store it so
        if torch.is_grad_enabled():
            return (scores + bias).softmax(dim=-1)
        scores.add_(bias)
        if scores.dtype == torch.bfloat16 and has_bfloat16():
            return scores.to_mkldnn().softmax(dim=-1).to_dense()   # two copies, yet half of PyTorch's own time
        return torch.softmax(scores, dim=-1, out=scores)
