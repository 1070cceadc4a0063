"""LGCE, language-guided cross-scale enhancement of the two coarsest maps (Yuan et al., TGRS 2024, "RRSIS").

Shapes: B batch, H W a map, C its channels, N words, L channels of a word vector.
"""
import torch
from torch import Tensor, nn

DEPTHS, HEADS = (1, 3), (8, 16)   # of the blocks on the last two maps


class GuidedBlocks(nn.Module):
    """Transformer blocks on the tokens of a map and one guide token, the mean of the sentence's words.

    In the paper the two maps exchange their guide tokens afterwards. In the original code the exchange has no effect,
    because the tokens are then dropped, so this module leaves it out.
    """

    optimizer_group = "decoder"   # where the original code has them

    def __init__(self, dims: list[int], text_dim: int):
        # Not at the file's head: timm takes half a second, and no other network needs it.
        from timm.models.vision_transformer import Block

        super().__init__()
        self.guides = nn.ModuleList(nn.Linear(text_dim, dim) for dim in dims[-2:])
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(dim, heads, mlp_ratio=2, norm_layer=nn.LayerNorm) for _ in range(depth)))
            for dim, depth, heads in zip(dims[-2:], DEPTHS, HEADS, strict=True))

    def forward(self, features: list[Tensor], words: Tensor, word_mask: Tensor) -> list[Tensor]:
        """Four maps (B, C, H, W), finest first, words (B, N, L) -> four maps. The mean includes padding."""
        mean = words.mean(dim=1)
        enhanced = [self.enhance(feature, guide(mean), blocks)
                    for feature, guide, blocks in zip(features[-2:], self.guides, self.blocks, strict=True)]
        return [*features[:-2], *enhanced]

    def enhance(self, feature: Tensor, guide: Tensor, blocks: nn.Module) -> Tensor:
        """(B, C, H, W) with the guide token (B, C) -> (B, C, H, W)"""
        tokens = feature.flatten(2).transpose(1, 2)                                          # (B, H·W, C)
        tokens = blocks(torch.cat([guide[:, None], tokens], dim=1))[:, 1:]
        return tokens.transpose(1, 2).reshape(feature.shape)
