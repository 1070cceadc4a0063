"""Scaled dot-product attention, the faster way for the device. Shapes: B batch, h heads, Q K tokens, d channels."""
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.accelerate.onednn import has_bfloat16


def attention_shares(query: Tensor, key: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale · query · keyᵀ + bias): (B, h, Q, d), (B, h, K, d) -> (B, h, Q, K), in the inputs' precision.

    `bias` broadcasts to (B, h, Q, K); `scale` is d^-0.5 unless given.
    """
    scores = query @ (key * (query.shape[-1] ** -0.5 if scale is None else scale)).transpose(-2, -1)
    bias = 0.0 if bias is None else bias.to(scores.dtype)
    with torch.autocast(query.device.type, enabled=False):   # float32 inside in any case; autocast would store it too
        if torch.is_grad_enabled():
            return (scores + bias).softmax(dim=-1)
        scores.add_(bias)
        if scores.device.type == "cpu" and scores.dtype == torch.bfloat16 and has_bfloat16():
            return scores.to_mkldnn().softmax(dim=-1).to_dense()   # half of PyTorch's own time, and two copies
        return torch.softmax(scores, dim=-1, out=scores)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The values that `attention_shares` mixes: (B, h, Q, d), (B, h, K, d), (B, h, K, e) -> (B, h, Q, e).

    On GPUs the fused kernel is the faster one. On CPUs it takes twice the time of its parts for heads as small as
    Swin's (docs/performance.md).
    """
    if query.device.type != "cpu":
        bias = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention_shares(query, key, bias).to(value.dtype) @ value
