"""CIM's attention on CPUs: its two strided convolutions compute in float32 under autocast."""
import torch
from torch import Tensor

from lib.cim import CrossScaleAttention


class FastCrossScaleAttention(CrossScaleAttention):
    """The same attention with float32 convolutions. Shapes: as in lib/cim.py.

    On CPUs PyTorch computes wrong gradients for bfloat16 convolutions of maps as small as these.
    """

    def scales(self, z: Tensor) -> list[Tensor]:
        """(B, E, g, g) -> the map itself and its two coarser versions."""
        z = self.bn_in(z)
        with torch.autocast("cpu", enabled=False):
            wide = z.to(next(self.down3.parameters()).dtype)
            return [z, self.down2(wide), self.down3(wide)]
