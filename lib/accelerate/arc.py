"""ARC on CPUs: the kernel is rotated within Winograd's transform, in the precision of the products.

Shapes: as in lib/arc.py; P = 36 pairs of Winograd's points.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.accelerate.derived import DerivedTensor
from lib.accelerate.precision import compute_dtype
from lib.accelerate.winograd import convolve, tiles, transforms
from lib.arc import AdaptiveRotatedConv

FEW_TILES = 40   # maps of at most so many tiles: transforming a kernel for one sample would cost more than it saves


class FastAdaptiveRotatedConv(AdaptiveRotatedConv):
    """Gives the same numbers with a quarter of the multiplications, on maps of more than `FEW_TILES` tiles."""

    def begin(self) -> None:
        """Called once, when a module takes this class."""
        self.derived_taps = DerivedTensor()

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)"""
        scale, angle_rad = self.router(x)
        dtype = compute_dtype(self.weight)
        batch, _, height, width = x.shape
        if tiles(height, width) > FEW_TILES:
            return convolve([x], self.combine(transforms(self.weight.dtype)[1], scale, angle_rad, dtype))
        weight = self.combine(torch.eye(9), scale, angle_rad, dtype)                     # (9, B, I, O)
        weight = weight.permute(1, 3, 2, 0).unflatten(-1, (3, 3))
        x = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=batch)
        return x.view(batch, -1, height, width)

    def combine(self, rows: Tensor, scale: Tensor, angle_rad: Tensor, dtype: torch.dtype) -> Tensor:
        """Applies `rows` (P, 9), linear functions of a kernel's taps, to each sample's kernel: -> (P, B, I, O).

        If `dtype` is coarser than the weight's, the taps are rounded to it, as those of any kernel. The rotation is
        split into a rounded part and a remainder, because a rounding error in it would rotate the whole kernel.
        """
        with torch.autocast("cpu", enabled=False):
            scale, angle_rad = scale.to(self.weight.dtype), angle_rad.to(self.weight.dtype)
            rotation = scale[..., None, None] * self.rotation(angle_rad)             # (B, K, 9, 9)
            rows = (rows.to(self.weight.dtype) @ rotation).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)   # (P·B, K·9)
            parts = [rows.to(dtype)]
            if dtype != rows.dtype:
                parts.append((rows - parts[0]).to(dtype))
            taps = self.derived_taps.get(self.weight, dtype, lambda: self.taps(dtype).repeat(len(parts), 1))
            outputs, inputs = self.weight.shape[1:3]
            return (torch.cat(parts, dim=1) @ taps).view(-1, len(scale), inputs, outputs)

    def taps(self, dtype: torch.dtype) -> Tensor:
        """The weight as (K · 9, I · O)."""
        return self.weight.permute(0, 3, 4, 2, 1).flatten(3).flatten(0, 2).to(dtype)
