"""Swin's windows: splitting and joining of a map, the mask of shifted windows (Liu et al., ICCV 2021, section 3.2).

Shapes: B batch, H W a map padded to whole windows, C channels, w window side, n windows of a map. Maps are
channels-last, (B, H, W, C).
"""
import torch
from torch import Tensor

MASKED = -100.0  # added to the attention score of two tokens that the cyclic shift brought together


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, n, w², C); H and W are multiples of the window, windows in row-major order."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def join_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B, n, w², C) -> (B, H, W, C)."""
    batch, _, _, channels = x.shape
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def padded_size(height: int, width: int, window: int) -> tuple[int, int]:
    """The size of a map padded to whole windows."""
    return -(-height // window) * window, -(-width // window) * window


def shift_mask(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """The mask that keeps shifted windows from mixing opposite edges: (n, w², w²), 0 or −100, typed like `like`.

    Each side has three bands: all but the last window, the last window less the shift, and the shift. Tokens of
    different bands do not attend to each other.
    """
    def band(length: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        return (position >= length - window).int() + (position >= length - window // 2).int()

    region = 3 * band(height)[:, None] + band(width)[None, :]
    region = split_windows(region[None, :, :, None], window)[0, :, :, 0]
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, MASKED)


def relative_position_index(window: int) -> Tensor:
    """The row of the bias table for each pair of tokens of a window: (w², w²) int64 in 0 … (2w − 1)² − 1."""
    row, column = torch.arange(window * window).div(window, rounding_mode="floor"), \
        torch.arange(window * window) % window
    row_offset = row[:, None] - row[None, :] + window - 1
    column_offset = column[:, None] - column[None, :] + window - 1
    return row_offset * (2 * window - 1) + column_offset
