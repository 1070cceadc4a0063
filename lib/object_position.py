"""FIAM, FIANet's fine-grained image-text alignment module: object, position, channels (Lei et al., TGRS 2024, "FIAM").

Shapes: B batch, H W a stage's map, C its channels, N words, L channels of a word vector. The two
phrases of a sentence, object and position, are encodings of the same N tokens under two masks.
"""
import torch
from torch import Tensor, nn

from lib.pwam import Gate, WordAttention
from lib.swin import init_swin_weights

REDUCTION = 8   # the hidden layer that computes the channel weights has C / REDUCTION channels
Phrases = tuple[Tensor, Tensor]   # words (B, 2, N, L) and masks (B, 2, N) of 0 and 1: object first, then position


class ObjectPositionAlignment(nn.Module):
    """Computes the update of a stage's map, c · (language + gate(o)·o·a).

    o are the features of the object's words, a is the map of the position's words, and c weights the channels.
    """

    def __init__(self, dim: int, text_dim: int, heads: int = 1):
        super().__init__()
        self.object_attention = WordAttention(dim, text_dim, heads)
        self.object_gate = Gate(dim)
        # Every original checkpoint contains it, although nothing uses it.
        self.unused_embedding = nn.Linear(dim, dim, bias=False).requires_grad_(False)
        self.position_attention = WordAttention(dim, text_dim, heads)
        self.position_conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.channel_weights = nn.Sequential(nn.Linear(dim, dim // REDUCTION), nn.ReLU(),
                                             nn.Linear(dim // REDUCTION, dim), nn.Sigmoid())
        for part in (self.object_gate, self.unused_embedding, self.channel_weights):
            part.apply(init_swin_weights)

    def forward(self, x: Tensor, language: Tensor, phrases: Phrases) -> Tensor:
        """The stage's map x and its gated language features, both (B, H, W, C), and the phrases -> (B, H, W, C)"""
        (object_words, position_words), (object_mask, position_mask) = (part.unbind(1) for part in phrases)
        pixels = x.flatten(1, 2)
        found = self.object_attention(pixels, object_words, object_mask).view(x.shape)
        found = self.object_gate(found) * found
        place = self.position_attention(pixels, position_words, position_mask).view(x.shape)
        weights = self.channel_weights(x.mean(dim=(1, 2)))[:, None, None]                    # (B, 1, 1, C)
        return weights * (language + found * self.position_map(place))

    def position_map(self, place: Tensor) -> Tensor:
        """The spatial map of the features of the position's words: (B, H, W, C) -> (B, H, W, 1) in 0 … 1."""
        summary = torch.stack([place.mean(dim=-1), place.amax(dim=-1)], dim=1)               # (B, 2, H, W)
        return self.position_conv(summary).sigmoid().permute(0, 2, 3, 1)
