"""IIM, RMSIN's intra-scale interaction module: a spatial weight from several receptive fields (CVPR 2024, "IIM").

Shapes: B batch, H W the map, C channels. The original code calls the branch `visual_residual`.
"""
from torch import Tensor, nn


class PointwiseBranch(nn.Module):
    """1 × 1 convolution and BatchNorm of one channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, a: Tensor) -> Tensor:
        return self.bn(self.conv(a))


class SpatialBranch(nn.Module):
    """1 × 1 convolution and BatchNorm, then 3 × 3 convolution and BatchNorm, of one channel."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1)
        self.conv2 = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(1)

    def forward(self, a: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(a))))


class Round(nn.Module):
    """The sum of the three branches on one map: (B, 1, H, W) -> (B, 1, H, W)."""

    def __init__(self):
        super().__init__()
        self.identity = nn.BatchNorm2d(1)
        self.pointwise = PointwiseBranch()
        self.spatial = SpatialBranch()

    def forward(self, a: Tensor) -> Tensor:
        return self.identity(a) + self.pointwise(a) + self.spatial(a)


class IntraScale(nn.Module):
    """Weights each pixel by a sigmoid of its neighbourhood, after two rounds: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.rounds = nn.ModuleList([Round(), Round()])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.rounds
        a = first(x.mean(dim=-1).unsqueeze(1)).relu()   # (B, 1, H, W)
        return x * second(a).sigmoid().squeeze(1).unsqueeze(-1)
