"""Scaled dot-product attention, the faster way for the device. Shapes: B batch, h heads, Q K tokens, d channels."""
import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale · query · keyᵀ + bias) · value: (B, h, Q, d), (B, h, K, d), (B, h, K, e) -> (B, h, Q, e).

    `bias` broadcasts to (B, h, Q, K); `scale` is d^-0.5 unless given. On GPUs the fused kernel is the faster one. On
    CPUs it takes twice the time of its parts for heads as small as Swin's (docs/performance.md).
    """
    if query.device.type != "cpu":
        bias = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if bias is not None:
        bias = bias.to(scores.dtype)
        scores = scores + bias if torch.is_grad_enabled() else scores.add_(bias)
    with torch.autocast("cpu", enabled=False):   # float32 inside in any case; autocast would store it too
        shares = scores.softmax(dim=-1)
    return shares.to(value.dtype) @ value
