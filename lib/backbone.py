"""The language-aware backbone: four Swin stages with pixel-word attention (LAVT, section 3; RMSIN, "CSIE").

Shapes: B batch, H W a stage's map, C its width, N words, L width of the text encoder.
"""
from collections.abc import Callable

from torch import Tensor, nn

from lib.language_fusion import Gate
from lib.object_position import Phrases
from lib.swin import PatchEmbed, PatchMerging, SwinBlock, init_swin_weights
from lib.windows import padded_size, shift_mask


class Stage(nn.Module):
    """Swin blocks, followed by language (and, in RMSIN, intra-scale) features that are gated into the map.

    LAVT:   x ← x + gate(f)·f,                     f = PWAM(x, words)
    RMSIN:  x ← x + gate(f)·f + visual_gate(v)·v,  v = IntraScale(x), the same x as before
    FIANet: x ← x + c·(gate(f)·f + o·a),           o, a, c as in ObjectPositionAlignment

    x is not used after the last stage. The last stage's gates and other branches exist because the original
    checkpoints contain them, but they are not computed and get no gradient.
    """

    def __init__(self, blocks: list[SwinBlock], fusion: nn.Module, intra_scale: nn.Module | None,
                 alignment: nn.Module | None, width: int, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window = blocks[0].attn.window
        self.fusion = fusion
        self.language_gate = Gate(width)
        self.intra_scale = intra_scale
        self.visual_gate = Gate(width) if intra_scale is not None else None
        self.alignment = alignment
        self.downsample = None if last else PatchMerging(width)
        if last:
            for unused in (self.language_gate, self.intra_scale, self.visual_gate, self.alignment):
                if unused is not None:
                    unused.requires_grad_(False)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor,
                phrases: Phrases | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C), words (B, N, L), word_mask (B, N) -> fused features (B, H, W, C), next x or None

        `phrases` are None for networks that do not read them.
        """
        height, width = x.shape[1:3]
        mask = shift_mask(*padded_size(height, width, self.window), self.window, like=x)
        for block in self.blocks:
            x = block(x, mask)
        fused = self.fusion(x.flatten(1, 2), words, word_mask).view(x.shape)
        if self.downsample is None:
            return fused, None
        return fused, self.downsample(self.update(x, fused, phrases))

    def update(self, x: Tensor, fused: Tensor, phrases: Phrases | None) -> Tensor:
        """The map with its gated branches added; x and fused (B, H, W, C) -> same"""
        language = self.language_gate(fused) * fused
        if self.alignment is not None:
            language = self.alignment(x, language, phrases)
        updated = x + language
        if self.intra_scale is not None and self.visual_gate is not None:
            visual = self.intra_scale(x)
            updated = updated + self.visual_gate(visual) * visual
        return updated

    def init_weights(self) -> None:
        """Applies Swin's initialisation to the linear layers of Swin and of the gates; PWAM keeps PyTorch's default.

        PWAM's projections are convolutions in the original code, which its initialisation does not change.
        """
        for part in (self.blocks, self.language_gate, self.visual_gate, self.downsample):
            if part is not None:
                part.apply(init_swin_weights)


class Backbone(nn.Module):
    """Computes four language-aware maps, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

    `widths`, `depths` and `heads` have one entry for each of the four stages; `make_stage(blocks, number)` makes stage
    `number` (0 to 3) around its Swin blocks. Drop path grows linearly from 0 to `drop_path` over all blocks.
    """

    def __init__(self, widths: list[int], depths: list[int], heads: list[int], window: int, drop_path: float,
                 make_stage: Callable[[list[SwinBlock], int], Stage]):
        super().__init__()
        self.widths = widths
        rates = iter([drop_path * block / (sum(depths) - 1) for block in range(sum(depths))])
        self.patch_embed = PatchEmbed(widths[0])
        self.stages = nn.ModuleList()
        for i, width in enumerate(widths):
            blocks = [SwinBlock(width, heads[i], window, shifted=j % 2 == 1, drop_path=next(rates))
                      for j in range(depths[i])]
            stage = make_stage(blocks, i)
            stage.init_weights()
            self.stages.append(stage)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor, phrases: Phrases | None = None) -> list[Tensor]:
        """image (B, 3, S, S'), words (B, N, L), word_mask (B, N), phrases -> four maps (B, C, H, W), finest first"""
        x, features = self.patch_embed(image), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            fused, x = stage(x, words, word_mask, phrases)
            features.append(norm(fused).permute(0, 3, 1, 2))
        return features
