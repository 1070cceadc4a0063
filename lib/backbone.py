"""The language-aware backbone: four Swin stages with pixel-word attention woven in (LAVT, section 3; RMSIN, "CSIE").

Shapes: B batch, H W a stage's map, C its width, N words, L width of the text encoder.
"""
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.intra_scale import IntraScale
from lib.language_fusion import Gate, PixelWordAttention
from lib.swin import PatchEmbed, PatchMerging, SwinBlock, init_swin_weights


class Stage(nn.Module):
    """Swin blocks, then language (and, in RMSIN, intra-scale) features gated into the map.

    LAVT:    x ← x + gate(f)·f,                     f = PWAM(x, words)
    RMSIN:  x ← x + gate(f)·f + visual_gate(v)·v,  v = IntraScale(x), the same x as before

    Nothing reads x after the last stage. Its gates and its intra-scale branch exist because published
    checkpoints hold them, but they are not computed and take no gradient.
    """

    def __init__(self, blocks: list[SwinBlock], fusion: PixelWordAttention, width: int,
                 intra_scale: bool, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.fusion = fusion
        self.language_gate = Gate(width)
        self.intra_scale = IntraScale() if intra_scale else None
        self.visual_gate = Gate(width) if intra_scale else None
        self.downsample = None if last else PatchMerging(width)
        if last:
            for unused in (self.language_gate, self.intra_scale, self.visual_gate):
                if unused is not None:
                    unused.requires_grad_(False)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor,
                recompute_blocks: bool = False) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C), words (B, N, L), word_mask (B, N) -> fused features (B, H, W, C), next x or None"""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute_blocks else block(x)
        fused = self.fusion(x.flatten(1, 2), words, word_mask).view(x.shape)
        if self.downsample is None:
            return fused, None
        update = torch.addcmul(x, self.language_gate(fused), fused)
        if self.intra_scale is not None:
            visual = self.intra_scale(x)
            update = torch.addcmul(update, self.visual_gate(visual), visual)
        return fused, self.downsample(update)


class Backbone(nn.Module):
    """Image and words to four language-aware maps, at 1/4, 1/8, 1/16 and 1/32 of the image.

    `widths`, `depths` and `heads` have four entries, one a stage; `fusion_heads` are PWAM's. Drop path
    grows linearly from 0 to `drop_path` over all blocks.
    """

    def __init__(self, widths: list[int], depths: list[int], heads: list[int], window: int, text_width: int,
                 fusion_heads: list[int], fusion_dropout: float, intra_scale: bool, drop_path: float):
        super().__init__()
        self.widths = widths
        self.recompute_blocks = False  # in training, keep only the blocks' inputs and compute the rest again
        rates = iter([drop_path * block / (sum(depths) - 1) for block in range(sum(depths))])
        self.patch_embed = PatchEmbed(widths[0])
        self.stages = nn.ModuleList()
        for i, width in enumerate(widths):
            blocks = [SwinBlock(width, heads[i], window, shifted=j % 2 == 1, drop_path=next(rates))
                      for j in range(depths[i])]
            stage = Stage(blocks, PixelWordAttention(width, text_width, fusion_heads[i], fusion_dropout),
                          width, intra_scale, last=i == len(widths) - 1)
            self.stages.append(stage)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.init_weights()

    def init_weights(self) -> None:
        """Swin's initialisation of Swin's and the gates' linear layers; PWAM keeps PyTorch's default.

        (PWAM's projections are convolutions in the published code, whose initialisation leaves those alone.)
        """
        for stage in self.stages:
            for part in (stage.blocks, stage.language_gate, stage.visual_gate, stage.downsample):
                if part is not None:
                    part.apply(init_swin_weights)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that AdamW does not decay: LayerNorms and position bias tables."""
        names = set()
        for path, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                names |= {f"{path}.weight", f"{path}.bias"}
            elif hasattr(module, "relative_position_bias_table"):
                names.add(f"{path}.relative_position_bias_table")
        return names

    def compile_blocks(self) -> None:
        """Compiles attention and MLP of every block in place, drop path apart, whose rate differs everywhere.

        DDP and SyncBatchNorm stay outside: they would break the graph.
        """
        torch._dynamo.config.recompile_limit = 64  # stages, shifted or not, training or not
        for stage in self.stages:
            for block in stage.blocks:
                block.attn.compile()
                block.mlp.compile()

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor) -> list[Tensor]:
        """image (B, 3, S, S'), words (B, N, L), word_mask (B, N) -> four maps (B, C, H, W), finest first"""
        x, features = self.patch_embed(image), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            fused, x = stage(x, words, word_mask, self.recompute_blocks and self.training)
            features.append(norm(fused).permute(0, 3, 1, 2))
        return features
