"""ARC on GPUs: few operators for the rotations, and no kernels of all samples in float32.

Shapes: as in lib/arc.py.
"""
import math
from typing import Any

import torch
from torch import Tensor

from lib.accelerate.precision import products_dtype
from lib.arc import AdaptiveRotatedConv

# The terms 1, cos θ, sin θ and cos θ·sin θ as factor · sin(frequency · θ + quarters · π / 2), then their derivatives.
# These constants are exact in every precision.
FACTORS = ((1.0, 1.0, 1.0, 0.5), (0.0, 1.0, 1.0, 1.0))
FREQUENCIES = ((0.0, 1.0, 1.0, 2.0), (0.0, 1.0, 1.0, 2.0))
QUARTERS = ((1.0, 1.0, 0.0, 0.0), (0.0, 2.0, 1.0, 1.0))


class GpuAdaptiveRotatedConv(AdaptiveRotatedConv):
    """Gives the same numbers.

    Under autocast a rotation is split into a rounded part and a remainder, because a rounding error in it would rotate
    the whole kernel; the taps are rounded, as those of any kernel.
    """

    rotation_basis: Tensor
    waves: Tensor            # (3, 2, 4)

    def begin(self) -> None:
        """Called once, when a module takes this class."""
        waves = self.rotation_basis.new_tensor([FACTORS, FREQUENCIES, QUARTERS])
        self.register_buffer("waves", waves, persistent=False)

    def rotated_weight(self, scale: Tensor, angle_rad: Tensor) -> Tensor:
        """Each sample's own kernel in the precision of the products: (B, K), (B, K) -> (B, O, I, 3, 3)"""
        if torch.compiler.is_compiling():
            return super().rotated_weight(scale, angle_rad)
        dtype = products_dtype(self.weight)
        scale, angle_rad = scale.to(self.weight.dtype), angle_rad.to(self.weight.dtype)
        with torch.autocast(self.weight.device.type, enabled=False):
            turn = Turn.apply(scale, angle_rad, self.rotation_basis, self.waves)
            return RotatedKernels.apply(self.weight, turn, dtype)


class Turn(torch.autograd.Function):
    """Scaled rotations of flattened kernels: scale (B, K), angle_rad (B, K), basis, waves -> (B, K, 9, 9)."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, angle_rad: Tensor, basis: Tensor, waves: Tensor) -> Tensor:
        factors, frequencies, quarters = waves
        angle = angle_rad[..., None, None]
        terms = torch.add(angle * frequencies, quarters, alpha=math.pi / 2).sin() * factors   # (B, K, 2, 4)
        positive, negative = basis.flatten(2)                                               # (4, 81)
        both = terms @ torch.where(angle >= 0, positive, negative)                          # (B, K, 2, 81)
        ctx.save_for_backward(scale, both)
        return scale[..., None, None] * both[:, :, 0].unflatten(-1, (9, 9))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale, both = ctx.saved_tensors
        by_scale, by_angle = (both @ gradient.flatten(2)[..., None]).squeeze(-1).unbind(-1)
        return by_scale, by_angle * scale, None, None


class RotatedKernels(torch.autograd.Function):
    """Σ over K of turned kernels: weight (K, O, I, 3, 3), turn (B, K, 9, 9) -> (B, O, I, 3, 3), in `dtype`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, turn: Tensor, dtype: torch.dtype) -> Tensor:
        count, *shape = weight.shape
        taps = weight.flatten(3).permute(1, 2, 0, 3).reshape(-1, count * 9).to(dtype)     # (O·I, K·9)
        turn = turn.mT.flatten(1, 2)                                                        # (B, K·9, 9): old tap, new
        rounded, parts = turn.to(dtype), 1
        if dtype != turn.dtype:
            rounded, parts = torch.cat([rounded, (turn - rounded).to(dtype)], dim=1), 2
        ctx.save_for_backward(taps, rounded)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        kernels = torch.bmm(taps.repeat(1, parts).expand(len(turn), -1, -1), rounded)       # (B, O·I, 9)
        return kernels.view(-1, *shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taps, rounded = ctx.saved_tensors
        count, outputs, inputs = ctx.shape[:3]
        gradient = gradient.reshape(len(rounded), -1, 9)                                    # (B, O·I, 9)
        by_taps = torch.bmm(gradient, rounded[:, :taps.shape[1]].mT).sum(dim=0, dtype=ctx.dtype)
        by_turn = torch.bmm(taps.mT.expand(len(gradient), -1, -1), gradient).unflatten(1, (count, 9)).mT
        return by_taps.view(outputs, inputs, count, 3, 3).permute(2, 0, 1, 3, 4), by_turn.to(ctx.dtype), None
