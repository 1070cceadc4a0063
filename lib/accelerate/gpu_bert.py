"""BERT on GPUs: one product gives queries, keys and values, and the padding mask is prepared once for all layers.

Shapes: B batch, N tokens, L channels of a token, h heads, d = L / h.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert.modeling_bert import BertSelfAttention

from bert import TextEncoder
from lib.accelerate.precision import products_dtype
from lib.accelerate.weight_casts import Borrower, CastLinear, Pack


class GpuTextEncoder(TextEncoder):
    """Gives the same numbers."""

    def attention_mask(self, token_mask: Tensor) -> Tensor:
        """(B, N) -> (B, 1, 1, N), 0 or −∞, as the attention adds it to the scores; the others convert it each time."""
        allowed = super().attention_mask(token_mask)
        dtype = products_dtype(next(self.parameters()))
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf"))


class GpuSelfAttention(Borrower, BertSelfAttention):
    """Gives the same numbers; it is lent the weights of its three linear layers as one, and their biases."""

    def packs(self) -> list[Pack]:
        """See `Borrower`. Nothing is borrowed if a layer is not a plain one, or if the attention is not PyTorch's."""
        layers = self.query, self.key, self.value
        if any(type(layer) is not CastLinear for layer in layers) or self.config._attn_implementation != "sdpa":
            return []
        return [[layer.weight for layer in layers], [layer.bias for layer in layers]]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any,
                **named: Any) -> tuple[Tensor, Tensor | None]:
        """(B, N, L), (B, 1, 1, N) -> (B, N, L), None"""
        if self.lent is None:
            return super().forward(hidden_states, attention_mask, *others, **named)
        qkv = F.linear(hidden_states, *self.lent).unflatten(-1, (3, self.num_attention_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))                     # (B, h, N, d)
        dropout = self.dropout.p if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout)
        return x.transpose(1, 2).flatten(2), None
