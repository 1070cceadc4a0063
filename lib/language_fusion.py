"""PWAM, the pixel-word attention module, and the gate of the language pathway (LAVT, CVPR 2022, section 3).

Shapes: B batch, P = H·W pixels, N words, C channels of the stage, L width of the text encoder.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.attention import attend

PADDING_SCORE = -1e4  # added to the scores of padding tokens


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each sample normalised over its pixels, without scale or shift: (B, P, C) -> same.

    Computed in at least float32: where a channel is flat, float16 cannot hold the gradient.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)   # torch.var_mean takes six times as long on CPUs
    return (centred * torch.rsqrt(variance + eps)).to(x.dtype)


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
        query, key, padding = self.ask(x, words, word_mask)
        # Scaled by the full width C, also with several heads.
        language = attend(query, key, self.split_heads(self.value(words)), padding, scale=x.shape[-1] ** -0.5)
        language = language.transpose(1, 2).flatten(2)
        language = instance_norm(self.language_project(language))
        return self.dropout(F.gelu(self.joint_project(visual * language)))

    def ask(self, x: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the pixels (B, heads, P, C / heads), keys of the words, what padding adds to the scores."""
        query = self.split_heads(instance_norm(self.query(x)))
        padding = (1.0 - word_mask.to(query.dtype)) * PADDING_SCORE                 # (B, N)
        return query, self.split_heads(self.key(words)), padding[:, None, None, :]

    def word_shares(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """How much each pixel attends to each word, the mean over heads: arguments of `forward` -> (B, P, N).

        Shares of a pixel sum to 1; for pictures, not for the forward pass.
        """
        query, key, padding = self.ask(x, words, word_mask)
        scores = query @ key.transpose(-2, -1) * x.shape[-1] ** -0.5 + padding
        return scores.softmax(dim=-1).mean(dim=1)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, heads, P, C / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Gate(nn.Sequential):
    """How much of a branch enters the stage's features: linear, ReLU, linear, tanh (LAVT, "Language pathway")."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width, bias=False), nn.ReLU(),
                         nn.Linear(width, width, bias=False), nn.Tanh())
