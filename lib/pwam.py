"""PWAM, LAVT's pixel-word attention module, and the gate of the language pathway (CVPR 2022, section 3).

Shapes: B batch, P = H·W pixels, N words, C channels of the stage, L channels of a word vector, h heads.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_SCORE = -1e4  # added to the scores of padding tokens


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalises each channel of each sample over its pixels, without scale or shift: (B, P, C) -> same.

    It is computed in at least float32, because float16 cannot represent the gradient of a constant channel.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return (centred * torch.rsqrt(variance + eps)).to(x.dtype)


class LanguageFeatures(nn.Module):
    """The language half of PWAM: each pixel mixes the values of the words that it attends to.

    If the mask is 0 throughout, the features are 0. Linear layers replace the 1 × 1 convolutions of the original code:
    they give the same numbers without transposing the map. A subclass makes `query`, `key`, `value` and
    `language_project`, among its other layers, in the order of the original code, which is also that of the
    optimiser's state in a checkpoint.
    """

    heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    language_project: nn.Linear

    def language(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Weights the words' values per pixel, then projects and normalises: arguments of `forward` -> (B, P, C)."""
        value = self.split_heads(self.value(words) * word_mask[..., None])              # (B, h, N, C / h)
        mix = self.attention_weights(x, words, word_mask) @ value                       # (B, h, P, C / h)
        return self.normalize(self.language_project(mix.transpose(1, 2).flatten(2)))

    def attention_weights(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """The attention of each pixel to each word: arguments of `forward` -> (B, h, P, N), summing to 1 over N."""
        query = self.split_heads(self.normalize(self.query(x)))
        key = self.split_heads(self.key(words) * word_mask[..., None])
        scores = query @ key.transpose(-2, -1) * x.shape[-1] ** -0.5                    # the full C, also with heads
        padding = (1.0 - word_mask.to(scores.dtype)) * PADDING_SCORE                    # (B, N)
        return (scores + padding[:, None, None]).softmax(dim=-1)

    def normalize(self, x: Tensor) -> Tensor:
        """The InstanceNorm of queries and of features: (B, P, C) -> same"""
        return instance_norm(x)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, h, P, C / h)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class WordAttention(LanguageFeatures):
    """The language features alone, as FIANet uses them."""

    def __init__(self, dim: int, text_dim: int, heads: int = 1):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.language_project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, P, C), words (B, N, L), word_mask (B, N) of 0 and 1 -> (B, P, C)"""
        return self.language(x, words, word_mask)


class PixelWordAttention(LanguageFeatures):
    """PWAM: multiplies the language features with the pixel's own features (LAVT, section 3.2, "PWAM")."""

    def __init__(self, dim: int, text_dim: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.visual_project = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.language_project = nn.Linear(dim, dim)
        self.joint_project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, P, C), words (B, N, L), word_mask (B, N) of 0 and 1 -> (B, P, C)"""
        visual = self.dropout(F.gelu(self.visual_project(x)))
        language = self.language(x, words, word_mask)
        return self.dropout(F.gelu(self.joint_project(visual * language)))


class Gate(nn.Sequential):
    """The gate of a branch: linear, ReLU, linear, tanh (LAVT, "Language pathway")."""

    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh())
