"""The top-down decoder, whose levels join the coarser map with the next finer one (LAVT, "Segmentation").

Shapes: B batch, C_i H_i W_i the maps of the stages, finest first, M = C_4 / 2 hidden channels.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 × 3 convolution, padding 1, without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class Level(nn.Module):
    """Joins an upsampled map with a finer one in two convolutions: (B, C, h, w), (B, C', H, W) -> (B, M, H, W)."""

    def __init__(self, coarse_dim: int, fine_dim: int, hidden: int, second_conv: Callable[[int, int], nn.Module]):
        super().__init__()
        self.conv1 = plain_conv(coarse_dim + fine_dim, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = second_conv(hidden, hidden)
        self.bn2 = nn.BatchNorm2d(hidden)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True)
        x = self.bn1(self.conv1(torch.cat([coarse, fine], dim=1))).relu()
        return self.bn2(self.conv2(x)).relu()


class Decoder(nn.Module):
    """Decodes four maps (B, C_i, H_i, W_i), finest first, to logits (B, 2, H_1, W_1).

    `second_conv(in, out)` makes the second convolution of each level: plain in LAVT, rotated (ARC) in RMSIN.
    """

    def __init__(self, dims: list[int], second_conv: Callable[[int, int], nn.Module] = plain_conv, classes: int = 2):
        super().__init__()
        hidden = dims[-1] // 2
        coarse_dims = [dims[-1]] + [hidden] * (len(dims) - 2)
        self.levels = nn.ModuleList(Level(coarse, fine, hidden, second_conv)
                                    for coarse, fine in zip(coarse_dims, dims[-2::-1], strict=True))
        self.head = nn.Conv2d(hidden, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for level, fine in zip(self.levels, features[-2::-1], strict=True):
            x = level(x, fine)
        return self.head(x)
