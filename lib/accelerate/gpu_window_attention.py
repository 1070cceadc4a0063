"""Swin's window attention on GPUs: maps are copied in the precision of the products, and a shared bias is not repeated.

Autocast rounds a map only where it is multiplied, after padding, shift and partition have copied it in float32.

Shapes: as in lib/swin.py.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.swin import WindowAttention
from lib.windows import join_windows, padded_size, split_windows


class GpuWindowAttention(WindowAttention):
    """Gives the same numbers: a copy of a rounded map is the rounded copy of the map.

    Only the gradient of the position bias is rounded elsewhere: once after the sum over samples and windows, instead of
    in each window after the sum over samples.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) of 0 and −100, used where the windows are shifted -> (B, H, W, C)"""
        height, width = x.shape[1:3]
        padded_height, padded_width = padded_size(height, width, self.window)
        padded = (padded_height, padded_width) != (height, width)
        x = x.to(products_dtype(x))
        if padded:
            x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.attend(split_windows(x, self.window), mask if self.shift else None)
        x = join_windows(x, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width] if padded else x

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window: (B, n, w², C), mask (n, w², w²) or None -> (B, n, w², C)"""
        batch, windows, area, channels = x.shape
        bias = self.position_bias()[None].to(products_dtype(x))                         # (1, h, w², w²)
        qkv = self.qkv(x).view(batch, windows, area, 3, self.heads, channels // self.heads)
        if mask is not None:   # windows with masks of their own count as heads, the others as samples
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)[None]            # (1, n·h, w², w²)
            query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)             # each (B, n·h, w², d)
            x = F.scaled_dot_product_attention(query, key, value, bias)
            x = x.unflatten(1, (windows, self.heads)).transpose(2, 3)                   # (B, n, w², h, d)
        else:
            query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)                # each (B·n, h, w², d)
            x = F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).unflatten(0, (batch, windows))
        return self.proj(x.flatten(3))


def products_dtype(x: Tensor) -> torch.dtype:
    """The precision in which the tensor's device multiplies it: autocast's, or the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
