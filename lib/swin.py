"""Swin Transformer blocks for dense prediction (Liu et al., ICCV 2021): vision only.

Shapes: B batch, H W a map's height and width, C channels, w window side, n windows of a map,
h heads, d = C / h channels per head. Maps are channels-last, (B, H, W, C).
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torchvision.ops import StochasticDepth

from lib.accelerate.attention import attend
from lib.accelerate.derived import Kept
from lib.windows import pad_and_shift, relative_position_index, shift_mask, unshift_and_crop


class PatchEmbed(nn.Module):
    """4 × 4 pixels become one token: convolution, then LayerNorm. (B, 3, S, S') -> (B, ⌈S/4⌉, ⌈S'/4⌉, C)."""

    patch = 4

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, self.patch, self.patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2 × 2 tokens become one of twice the width. (B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, shifted or not, with a relative position bias.

    The map is zero-padded to whole windows *before* the cyclic shift, and the window never shrinks to
    the map; padding tokens take part as keys, as in the semantic-segmentation Swin.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.kept_bias = Kept()

    def position_bias(self) -> Tensor:
        """(h, w², w²)"""
        area = self.window ** 2
        bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return bias.view(area, area, self.heads).permute(2, 0, 1)

    def bias(self, height: int, width: int) -> Tensor:
        """What is added to the scores of a padded map: (1, h, w², w²), or (1, n·h, w², w²) where windows differ."""
        bias = self.position_bias()[None]
        if self.shift:
            mask = shift_mask(height, width, self.window, bias.device, bias.dtype)
            bias = (bias + mask[:, None]).flatten(0, 1)[None]
        return bias.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)"""
        batch, height, width, channels = x.shape
        window, heads, area = self.window, self.heads, self.window ** 2
        rows, columns = -(-height // window), -(-width // window)
        padded_height, padded_width = rows * window, columns * window

        # The query, key and value of a padding token are just the bias.
        qkv = pad_and_shift(self.qkv(x), self.qkv.bias, padded_height, padded_width, self.shift)
        # Where windows differ in their mask they count as heads, so that the batch shares it: (B, n·h, w², d);
        # elsewhere they count as samples, and share the bias: (B·n, h, w², d).
        qkv = qkv.view(batch, rows, window, columns, window, 3, heads, channels // heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)                                  # (3, B, rows, columns, h, w, w, d)
        groups = (batch, -1) if self.shift else (-1, heads)
        query, key, value = qkv.reshape(3, *groups, area, channels // heads)
        bias = self.kept_bias.get(self.relative_position_bias_table, (padded_height, padded_width, qkv.dtype),
                                  lambda: self.bias(padded_height, padded_width).to(qkv.dtype))
        x = attend(query, key, value, bias)

        x = x.view(batch, rows, columns, heads, window, window, channels // heads)
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, padded_height, padded_width, channels)
        return self.proj(unshift_and_crop(x, height, width, self.shift))


class Mlp(nn.Sequential):
    """To four times the width and back, GELU in between: (…, C) -> same."""

    def __init__(self, width: int):
        super().__init__(OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each a pre-norm residual branch under drop path. (B, H, W, C) -> same."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, shifted)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_swin_weights(module: nn.Module) -> None:
    """Swin's initialisation, for `Module.apply`: linear weights truncated normal (0.02), biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
