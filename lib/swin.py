"""Swin Transformer blocks for dense prediction (Liu et al., ICCV 2021): vision only.

Shapes: B batch, H W a map's height and width, H' W' the same padded to whole windows, C channels, w window side,
n windows of a map, h heads, d = C / h channels per head. Maps are channels-last, (B, H, W, C).
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torchvision.ops import StochasticDepth

from lib.windows import join_windows, padded_size, relative_position_index, split_windows


class PatchEmbed(nn.Module):
    """Embeds each 4 × 4 pixels as one token by a convolution and LayerNorm. (B, 3, S, S') -> (B, ⌈S/4⌉, ⌈S'/4⌉, C)."""

    patch = 4

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, self.patch, self.patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merges 2 × 2 tokens into one of twice the channels. (B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, shifted or not, with a relative position bias (equation 4).

    The map is zero-padded to whole windows *before* the cyclic shift, and the window never shrinks to the map. Padding
    tokens take part as keys, as in Swin for semantic segmentation.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, shifted: bool):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def position_bias(self) -> Tensor:
        """The relative position bias of each pair of tokens, (h, w², w²)."""
        area = self.window ** 2
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return bias.view(area, area, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) of 0 and −100, used where the windows are shifted -> (B, H, W, C)"""
        height, width = x.shape[1:3]
        padded_height, padded_width = padded_size(height, width, self.window)
        x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.attend(split_windows(x, self.window), mask if self.shift else None)
        x = join_windows(x, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window: (B, n, w², C), mask (n, w², w²) or None -> (B, n, w², C)"""
        windows, area, channels = x.shape[1:]
        bias = self.position_bias().expand(windows, -1, -1, -1)                        # (n, h, w², w²)
        if mask is not None:
            bias = bias + mask[:, None]
        # The windows of a map count as heads, so that the samples of a batch share their bias.
        qkv = self.qkv(x).view(-1, windows, area, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)                # each (B, n·h, w², d)
        x = F.scaled_dot_product_attention(query, key, value, bias.flatten(0, 1)[None])
        x = x.unflatten(1, (windows, self.heads)).transpose(2, 3).flatten(3)           # (B, n, w², C)
        return self.proj(x)


class Mlp(nn.Sequential):
    """Linear layers to four times the channels and back, with GELU between them: (…, C) -> same."""

    def __init__(self, dim: int):
        super().__init__(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each a pre-norm residual branch under drop path: (B, H, W, C) -> same (equation 3).

    `mask` is the mask of shifted windows, (n, w², w²).
    """

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shifted)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_swin_weights(module: nn.Module) -> None:
    """Swin's initialisation, for `Module.apply`: linear weights truncated normal (0.02), biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def no_weight_decay(module: nn.Module) -> set[str]:
    """Names of the parameters inside `module` that AdamW does not decay: LayerNorms and position bias tables."""
    names = set()
    for path, part in module.named_modules():
        if isinstance(part, nn.LayerNorm):
            names |= {f"{path}.weight", f"{path}.bias"}
        elif hasattr(part, "relative_position_bias_table"):
            names.add(f"{path}.relative_position_bias_table")
    return names
