"""Word attention, PWAM's and FIANet's, on GPUs: one kernel normalises a map, where PyTorch needs eight operators.

Shapes: as in lib/pwam.py.
"""
import torch
from torch import Tensor

from lib.pwam import PADDING_SCORE, LanguageFeatures, PixelWordAttention, WordAttention


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """`lib.pwam.instance_norm` by the kernel of BatchNorm, for which the channels of all samples are one sample's.

    (B, P, C) -> same, stored as (B, C, P). The kernel computes in the precision of its weight, at least float32.
    """
    batch, pixels, channels = x.shape
    weight = x.new_ones(batch * channels, dtype=torch.promote_types(x.dtype, torch.float32))
    planes = x.transpose(1, 2).reshape(1, -1, pixels)
    normalized = torch.batch_norm(planes, weight, None, None, None, True, 0.0, eps, False)
    return normalized.view(batch, channels, pixels).transpose(1, 2)


class GpuLanguageFeatures(LanguageFeatures):
    """Gives the same numbers; the scores of padding tokens need no keys of 0."""

    def language(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, P, C), words (B, N, L), word_mask (B, N) of 0 and 1 -> (B, P, C)"""
        value = self.split_heads(self.value(words) * word_mask[..., None])              # (B, h, N, C / h)
        mix = self.attention_weights(x, words, word_mask) @ value                       # (B, h, P, C / h)
        return instance_norm(self.language_project(mix.transpose(1, 2).flatten(2)))

    def attention_weights(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """The attention of each pixel to each word: arguments of `language` -> (B, h, P, N), summing to 1 over N."""
        query = self.split_heads(instance_norm(self.query(x)))
        key = self.split_heads(self.key(words) * x.shape[-1] ** -0.5)
        padding = (1.0 - word_mask.to(query.dtype)) * PADDING_SCORE                     # (B, N)
        return (query @ key.mT + padding[:, None, None]).softmax(dim=-1)


class GpuWordAttention(GpuLanguageFeatures, WordAttention):
    """`WordAttention` with fewer passes over the map."""


class GpuPixelWordAttention(GpuLanguageFeatures, PixelWordAttention):
    """PWAM with fewer passes over the map."""
