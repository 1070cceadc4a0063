"""Word attention, PWAM's and FIANet's, on CPUs: words are projected and normalised before they are mixed for pixels.

Shapes: as in lib/pwam.py.
"""
import torch
from torch import Tensor

from lib.accelerate.attention import attention_weights
from lib.pwam import PADDING_SCORE, LanguageFeatures, PixelWordAttention, WordAttention, instance_norm


def normalized_mix(weights: Tensor, values: Tensor, eps: float = 1e-5) -> Tensor:
    """`instance_norm` of the values under attention weights: (B, h, P, N), (B, h, N, C) -> (B, P, C).

    The weighted sum is linear in the few words, so its mean and variance over the pixels follow from those of the
    weights, and it is normalised by scaling the words' values.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        weights, wide = weights.to(dtype), values.to(dtype)
        mean = weights.mean(dim=2, keepdim=True)
        wide = (wide - mean @ wide).flatten(1, 2)                                   # (B, h · N, C)
        weights = (weights - mean).transpose(1, 2).flatten(2)                       # (B, P, h · N)
        covariance = weights.mT @ weights / weights.shape[1]
        variance = (wide * (covariance @ wide)).sum(dim=1, keepdim=True).clamp_min(0)
        wide = wide * torch.rsqrt(variance + eps)
    return weights.to(values.dtype) @ wide.to(values.dtype)


class FastLanguageFeatures(LanguageFeatures):
    """Gives the same numbers without projecting or normalising a whole map."""

    def language(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, P, C), words (B, N, L), word_mask (B, N) of 0 and 1 -> (B, P, C)"""
        return normalized_mix(self.attention_weights(x, words, word_mask), self.projected_values(words, word_mask))

    def attention_weights(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """The attention of each pixel to each word: arguments of `language` -> (B, h, P, N), summing to 1 over N."""
        query = self.split_heads(instance_norm(self.query(x)))
        padding = (1.0 - word_mask.to(query.dtype)) * PADDING_SCORE                 # (B, N)
        return attention_weights(query, self.split_heads(self.key(words)), padding[:, None, None], x.shape[-1] ** -0.5)

    def projected_values(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Each head's values after `language_project`, which is linear and may therefore precede the weighted sum.

        (B, N, L), (B, N) -> (B, h, N, C). The bias, added once for each head, cancels in `normalized_mix`.
        """
        values = (self.value(words) * word_mask[..., None])[:, None]
        own = torch.eye(self.heads, dtype=values.dtype, device=values.device)
        own = own.repeat_interleave(values.shape[-1] // self.heads, dim=1)[:, None]   # (h, 1, C)
        return self.language_project(values * own)


class FastWordAttention(FastLanguageFeatures, WordAttention):
    """`WordAttention` with the faster language features."""


class FastPixelWordAttention(FastLanguageFeatures, PixelWordAttention):
    """PWAM with the faster language features."""
