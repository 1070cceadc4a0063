"""TMEM, FIANet's text-aware multi-scale enhancement: pooled tokens attend to the words (TGRS 2024, "TMEM").

Shapes: B batch, D sum of the channels of the four stages, E = D / 4 embedding, g g' the coarsest map, G = g · g' its
tokens, N words, L channels of a word vector.
"""
from torch import Tensor, nn

from lib.cim import CrossScale
from lib.pwam import WordAttention
from lib.swin import init_swin_weights


class TextBlock(nn.Module):
    """Word attention and MLP, each a pre-norm residual branch: (B, G, E) -> same."""

    def __init__(self, dim: int, text_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WordAttention(dim, text_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
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


def tmem(dims: list[int], text_dim: int, num_tmem: int) -> CrossScale:
    """FIANet's cross-scale module of `num_tmem` blocks; it takes maps of any size."""
    return CrossScale(dims, lambda quarters: TextBlocks(TextBlock(sum(quarters), text_dim) for _ in range(num_tmem)))
