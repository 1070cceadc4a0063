"""ARC, adaptive rotated convolution (Pu et al., ICCV 2023), as RMSIN's decoder uses it (RMSIN, "ARC").

Shapes: B batch, H W the map, I O channels in and out, K kernels (1 in RMSIN), 9 the taps of a 3 × 3 kernel.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ANGLE_RAD = math.radians(40)

# Rows (new tap, old tap, then the factors of 1, cos θ, sin θ, cos θ·sin θ) of the 9 × 9 matrix that rotates a
# 3 × 3 kernel, by bilinear interpolation between the taps of its ring; taps are numbered row by row.
ROTATE_POSITIVE = (
    (0, 0, 0, 1, -1, 0), (0, 1, 1, -1, 1, 0),
    (1, 1, 0, 1, 0, -1), (1, 2, 0, 0, 0, 1), (1, 4, 1, -1, -1, 1), (1, 5, 0, 0, 1, -1),
    (2, 2, 0, 1, -1, 0), (2, 5, 1, -1, 1, 0),
    (3, 0, 0, 0, 0, 1), (3, 1, 0, 0, 1, -1), (3, 3, 0, 1, 0, -1), (3, 4, 1, -1, -1, 1),
    (4, 4, 1, 0, 0, 0),
    (5, 4, 1, -1, -1, 1), (5, 5, 0, 1, 0, -1), (5, 7, 0, 0, 1, -1), (5, 8, 0, 0, 0, 1),
    (6, 3, 1, -1, 1, 0), (6, 6, 0, 1, -1, 0),
    (7, 3, 0, 0, 1, -1), (7, 4, 1, -1, -1, 1), (7, 6, 0, 0, 0, 1), (7, 7, 0, 1, 0, -1),
    (8, 7, 1, -1, 1, 0), (8, 8, 0, 1, -1, 0),
)
ROTATE_NEGATIVE = (
    (0, 0, 0, 1, 1, 0), (0, 3, 1, -1, -1, 0),
    (1, 0, 0, 0, 0, -1), (1, 1, 0, 1, 0, 1), (1, 3, 0, 0, -1, 1), (1, 4, 1, -1, 1, -1),
    (2, 1, 1, -1, -1, 0), (2, 2, 0, 1, 1, 0),
    (3, 3, 0, 1, 0, 1), (3, 4, 1, -1, 1, -1), (3, 6, 0, 0, 0, -1), (3, 7, 0, 0, -1, 1),
    (4, 4, 1, 0, 0, 0),
    (5, 1, 0, 0, -1, 1), (5, 2, 0, 0, 0, -1), (5, 4, 1, -1, 1, -1), (5, 5, 0, 1, 0, 1),
    (6, 6, 0, 1, 1, 0), (6, 7, 1, -1, -1, 0),
    (7, 4, 1, -1, 1, -1), (7, 5, 0, 0, -1, 1), (7, 7, 0, 1, 0, 1), (7, 8, 0, 0, 0, -1),
    (8, 5, 1, -1, -1, 0), (8, 8, 0, 1, 1, 0),
)


def rotation_basis(entries: tuple[tuple[int, ...], ...]) -> Tensor:
    """The factors of {1, cos θ, sin θ, cos θ·sin θ} for each entry (new tap, old tap): (4, 9, 9)."""
    basis = torch.zeros(4, 9, 9)
    for new, old, *factors in entries:
        basis[:, new, old] = torch.tensor(factors, dtype=basis.dtype)
    return basis


class Router(nn.Module):
    """Predicts the scale and the rotation of each kernel from the map.

    (B, I, H, W) -> scale (B, K) in 0 … 1, angle_rad (B, K) in −40° … 40°
    """

    def __init__(self, channels: int, kernels: int, dropout: float = 0.2):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Linear(channels, kernels)
        self.angle = nn.Linear(channels, kernels, bias=False)
        for layer in (self.depthwise, self.scale, self.angle):   # the bias of `scale` keeps PyTorch's default
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).relu().mean(dim=(1, 2))   # (B, I)
        scale = self.scale(self.dropout(x)).sigmoid()
        angle_rad = F.softsign(self.angle(self.dropout(x))) * MAX_ANGLE_RAD
        return scale, angle_rad


class AdaptiveRotatedConv(nn.Module):
    """A 3 × 3 convolution, padding 1, whose kernel is rotated and scaled for each sample by the `Router`.

    (B, I, H, W) -> (B, O, H, W). At angle 0 and scale 1 it is a plain convolution. It has no bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernels: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernels, out_channels, in_channels, 3, 3))
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        self.router = Router(in_channels, kernels)
        basis = torch.stack([rotation_basis(ROTATE_POSITIVE), rotation_basis(ROTATE_NEGATIVE)])
        self.register_buffer("rotation_basis", basis, persistent=False)   # (2, 4, 9, 9)

    def rotation(self, angle_rad: Tensor) -> Tensor:
        """The matrices that rotate a flattened kernel: (B, K) -> (B, K, 9, 9)."""
        cos, sin = angle_rad.cos(), angle_rad.sin()
        terms = torch.stack([torch.ones_like(cos), cos, sin, cos * sin], dim=-1)   # (B, K, 4)
        positive, negative = torch.einsum("bkt,stij->sbkij", terms, self.rotation_basis.to(terms.dtype))
        return torch.where((angle_rad >= 0)[..., None, None], positive, negative)

    def rotated_weight(self, scale: Tensor, angle_rad: Tensor) -> Tensor:
        """Each sample's own kernel, Σ over K of scale · rotated weight: (B, K), (B, K) -> (B, O, I, 3, 3).

        It is computed in the weight's precision even under autocast, since rounding an angle rotates the whole kernel.
        """
        with torch.autocast(self.weight.device.type, enabled=False):
            scale, angle_rad = scale.to(self.weight.dtype), angle_rad.to(self.weight.dtype)
            turn = scale[..., None, None] * self.rotation(angle_rad)                         # (B, K, 9, 9)
            weight = torch.einsum("bkij,koaj->boai", turn, self.weight.flatten(3))           # (B, O, I, 9)
        return weight.unflatten(-1, (3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rotated_weight(*self.router(x))
        # One convolution for the whole batch: the samples are groups.
        batch, _, height, width = x.shape
        x = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=batch)
        return x.view(batch, -1, height, width)
