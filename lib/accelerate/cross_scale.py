"""CIM's attention on CPUs: its two strided convolutions compute in float32 under autocast."""
import torch
from torch import Tensor

from lib.cross_scale import CrossScaleAttention


class FastCrossScaleAttention(CrossScaleAttention):
    """In bfloat16 PyTorch's gradient of convolutions of so small maps is wrong on CPUs. Shapes: lib/cross_scale.py."""

    def scales(self, z: Tensor) -> list[Tensor]:
        """(B, E, g, g) -> three maps"""
        z = self.bn_in(z)
        with torch.autocast("cpu", enabled=False):
            wide = z.to(next(self.down3.parameters()).dtype)
            return [z, self.down2(wide), self.down3(wide)]
