"""Word attention, PWAM's and FIANet's, on GPUs: one kernel normalises a map, where PyTorch needs eight operators.

Shapes: as in lib/pwam.py.
"""
import torch
from torch import Tensor

from lib.pwam import LanguageFeatures, PixelWordAttention, WordAttention


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """`lib.pwam.instance_norm` by the kernel of BatchNorm, for which the channels of all samples are one sample's.

    (B, P, C) -> same, stored as (B, C, P). The kernel computes in the precision of its weight, at least float32.
    """
    batch, pixels, channels = x.shape
    weight = x.new_ones(batch * channels, dtype=torch.promote_types(x.dtype, torch.float32))
    planes = x.transpose(1, 2).reshape(1, -1, pixels)
    normalized = torch.batch_norm(planes, weight, None, None, None, True, 0.0, eps, False)
    return normalized.view(batch, channels, pixels).transpose(1, 2)


class GpuLanguageFeatures(LanguageFeatures):
    """Gives the same numbers."""

    def normalize(self, x: Tensor) -> Tensor:
        """(B, P, C) -> same"""
        return instance_norm(x)


class GpuWordAttention(GpuLanguageFeatures, WordAttention):
    """`WordAttention` with fewer passes over the map."""


class GpuPixelWordAttention(GpuLanguageFeatures, PixelWordAttention):
    """PWAM with fewer passes over the map."""
