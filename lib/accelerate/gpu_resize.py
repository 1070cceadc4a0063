"""Resized maps on GPUs: under autocast they are written in the precision of the products.

Autocast resizes in float32, and the maps that a resized one is joined or multiplied with become float32, too.

Shapes: as in lib/cim.py and lib/decoder.py.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.accelerate.precision import products_dtype
from lib.cim import ScaleFusion
from lib.decoder import Level


class Resize(torch.autograd.Function):
    """Bilinear resizing, computed in at least float32 in each direction: (B, C, h, w) -> (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
        ctx.shape, ctx.align_corners = x.shape, align_corners
        with torch.autocast(x.device.type, enabled=False):   # the kernel rounds what it writes, once
            return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))   # the kernel adds where it writes
        x = torch.ops.aten.upsample_bilinear2d_backward(wide, gradient.shape[-2:], ctx.shape, ctx.align_corners)
        return x.to(gradient.dtype), None, None


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resizing in the precision of the products: (B, C, h, w) -> (B, C, H, W)."""
    return Resize.apply(x.to(products_dtype(x)), size, align_corners)


class GpuLevel(Level):
    """Gives the same numbers; the joined maps are rounded before the convolution reads them."""

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C, h, w), (B, C', H, W) -> (B, M, H, W)"""
        if torch.compiler.is_compiling():
            return super().forward(coarse, fine)
        coarse = resize(coarse, fine.shape[-2:], align_corners=True)
        x = self.bn1(self.conv1(torch.cat([coarse, fine.to(coarse.dtype)], dim=1))).relu()
        return self.bn2(self.conv2(x)).relu()


class GpuScaleFusion(ScaleFusion):
    """Gives the same numbers; under autocast gate and shift have the precision of the products."""

    def forward(self, own: Tensor, shared: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, g, g) -> (B, C, H, W)"""
        if torch.compiler.is_compiling():
            return super().forward(own, shared)
        size = own.shape[-2:]
        gate = resize(F.relu6(self.global_gate(shared) + 3) / 6, size, align_corners=False)
        shift = resize(self.global_embedding(shared), size, align_corners=False)
        return self.local_embedding(own) * gate + shift
