"""TMEM, FIANet's text-aware multi-scale enhancement: the four stages' pooled tokens read the words (TGRS 2024, "TMEM").

Shapes: B batch, D sum of the four stage widths, E = D / 4 embedding, g g' the coarsest map, G = g · g' its tokens,
N words, L width of the text encoder.
"""
from torch import Tensor, nn

from lib.cross_scale import CrossScale
from lib.language_fusion import WordAttention
from lib.swin import init_swin_weights


class TextBlock(nn.Module):
    """Word attention and MLP, each a pre-norm residual branch: (B, G, E) -> same."""

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WordAttention(width, text_width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.mlp.apply(init_swin_weights)   # TMEM is inside the backbone in the original code, and initialised with it

    def forward(self, tokens: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), words, word_mask)
        return tokens + self.mlp(self.norm2(tokens))


class TextBlocks(nn.ModuleList):
    """A sequence of blocks on a map's tokens."""

    def forward(self, z: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """z (B, E, g, g'), words (B, N, L), word_mask (B, N) -> (B, E, g, g')"""
        tokens = z.flatten(2).transpose(1, 2)
        for block in self:
            tokens = block(tokens, words, word_mask)
        return tokens.transpose(1, 2).reshape(z.shape)


def tmem(widths: list[int], side: int, text_width: int, blocks: int) -> CrossScale:
    """FIANet's cross-scale module, which does not depend on the `side` of the coarsest map."""
    return CrossScale(widths, lambda quarters: TextBlocks(TextBlock(sum(quarters), text_width) for _ in range(blocks)))
