"""The language-aware backbone: four Swin stages with pixel-word attention (LAVT, section 3; RMSIN, "CSIE").

Shapes: B batch, H W a stage's map, C its channels, N words, L channels of a word vector.
"""
from torch import Tensor, nn

from lib.object_position import Phrases
from lib.pwam import Gate
from lib.swin import PatchEmbed, PatchMerging, SwinBlock, init_swin_weights
from lib.windows import padded_size, shift_mask


class Stage(nn.Module):
    """Swin blocks, followed by language (and, in RMSIN, intra-scale) features that are gated into the map.

    LAVT:   x ← x + gate(f)·f,                     f = PWAM(x, words)
    RMSIN:  x ← x + gate(f)·f + visual_gate(v)·v,  v = IntraScale(x), with the x before the update
    FIANet: x ← x + c·(gate(f)·f + o·a),           o, a, c as in ObjectPositionAlignment

    x is not used after the last stage. The last stage's gates and other branches exist because the original
    checkpoints contain them, but they are not computed and get no gradient.
    """

    def __init__(self, blocks: list[SwinBlock], fusion: nn.Module, intra_scale: nn.Module | None,
                 alignment: nn.Module | None, dim: int, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window = blocks[0].attn.window
        self.fusion = fusion
        self.language_gate = Gate(dim)
        self.intra_scale = intra_scale
        self.visual_gate = Gate(dim) if intra_scale is not None else None
        self.alignment = alignment
        self.downsample = None if last else PatchMerging(dim)
        if last:
            for unused in (self.language_gate, self.intra_scale, self.visual_gate, self.alignment):
                if unused is not None:
                    unused.requires_grad_(False)
        self.init_weights()

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
    """Computes four language-aware maps, at 1/4, 1/8, 1/16 and 1/32 of the image's size; `dims` are their channels."""

    def __init__(self, patch_embed: PatchEmbed, stages: list[Stage], dims: list[int]):
        super().__init__()
        self.patch_embed = patch_embed
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor, phrases: Phrases | None = None) -> list[Tensor]:
        """image (B, 3, S, S'), words (B, N, L), word_mask (B, N), phrases -> four maps (B, C, H, W), finest first"""
        x, features = self.patch_embed(image), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            fused, x = stage(x, words, word_mask, phrases)
            features.append(norm(fused).permute(0, 3, 1, 2))
        return features
