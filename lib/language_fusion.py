"""PWAM, the pixel-word attention module, and the gate of the language pathway (LAVT, CVPR 2022, section 3).

Shapes: B batch, P = H·W pixels, N words, C channels of the stage, L width of the text encoder.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.accelerate.attention import attention_shares

PADDING_SCORE = -1e4  # added to the scores of padding tokens


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each sample normalised over its pixels, without scale or shift: (B, P, C) -> same.

    Computed in at least float32: where a channel is flat, float16 cannot hold the gradient.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)   # torch.var_mean takes six times as long on CPUs
    return (centred * torch.rsqrt(variance + eps)).to(x.dtype)


def normalized_mix(shares: Tensor, values: Tensor, eps: float = 1e-5) -> Tensor:
    """`instance_norm` of the values mixed by the shares: (B, heads, P, N), (B, heads, N, C) -> (B, P, C).

    The mix is linear in a few words: its mean and variance over the pixels follow from those of the shares, and
    scaling the words' values scales the mix.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        shares, wide = shares.to(dtype), values.to(dtype)
        mean = shares.mean(dim=2, keepdim=True)
        wide = (wide - mean @ wide).flatten(1, 2)                                   # (B, heads · N, C)
        shares = (shares - mean).transpose(1, 2).flatten(2)                         # (B, P, heads · N)
        covariance = shares.mT @ shares / shares.shape[1]
        variance = (wide * (covariance @ wide)).sum(dim=1, keepdim=True).clamp_min(0)
        wide = wide * torch.rsqrt(variance + eps)
    return shares.to(values.dtype) @ wide.to(values.dtype)


class PixelWordAttention(nn.Module):
    """Language features for every pixel, joined with the visual ones by a product (LAVT, "Pixel-word attention").

    The published 1 × 1 Conv1d are linear layers here: the same numbers, without transposing the map.
    """

    def __init__(self, width: int, text_width: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.visual_project = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(text_width, width)
        self.value = nn.Linear(text_width, width)
        self.language_project = nn.Linear(width, width)
        self.joint_project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, P, C), words (B, N, L), word_mask (B, N) of 0 and 1 -> (B, P, C)"""
        visual = self.dropout(F.gelu(self.visual_project(x)))
        language = normalized_mix(self.shares(x, words, word_mask), self.projected_values(words))
        return self.dropout(F.gelu(self.joint_project(visual * language.to(visual.dtype))))

    def shares(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """How much each pixel attends to each word: arguments of `forward` -> (B, heads, P, N), summing to 1 over N."""
        query = self.split_heads(instance_norm(self.query(x)))
        padding = (1.0 - word_mask.to(query.dtype)) * PADDING_SCORE                 # (B, N)
        # Scaled by the full width C, also with several heads.
        return attention_shares(query, self.split_heads(self.key(words)), padding[:, None, None], x.shape[-1] ** -0.5)

    def projected_values(self, words: Tensor) -> Tensor:
        """Each head's values after `language_project`, which is linear and so may come before the mix.

        (B, N, L) -> (B, heads, N, C). The bias, here once for each head, falls out of `normalized_mix`.
        """
        values = self.value(words)[:, None]
        own = torch.eye(self.heads, dtype=values.dtype, device=values.device)
        own = own.repeat_interleave(values.shape[-1] // self.heads, dim=1)[:, None]   # (heads, 1, C)
        return self.language_project(values * own)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, heads, P, C / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Gate(nn.Sequential):
    """How much of a branch enters the stage's features: linear, ReLU, linear, tanh (LAVT, "Language pathway")."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width, bias=False), nn.ReLU(),
                         nn.Linear(width, width, bias=False), nn.Tanh())
