"""Swin's windows: maps padded to whole ones and cyclically shifted, cut into them, masked (Liu et al., ICCV 2021).

Shapes: B batch, H W a map, H' W' the same padded to whole windows, C channels, w window side, n windows of a map. Maps
are channels-last, (B, H, W, C).
"""
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

MASKED = -100.0  # added to the attention score of two tokens that the cyclic shift brought together


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, n, w², C); H and W are multiples of the window, windows in row-major order."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def pad_and_shift(x: Tensor, padding: Tensor, padded_height: int, padded_width: int, shift: int) -> Tensor:
    """A map padded below and to the right, then rolled up and to the left: (B, H, W, C), (C,) -> (B, H', W', C)."""
    if not shift and (padded_height, padded_width) == x.shape[1:3]:
        return x
    return PadAndShift.apply(x, padding.to(x.dtype), padded_height, padded_width, shift)


def unshift_and_crop(x: Tensor, height: int, width: int, shift: int) -> Tensor:
    """The way back: (B, H', W', C) -> (B, H, W, C)."""
    if not shift and (height, width) == x.shape[1:3]:
        return x
    return UnshiftAndCrop.apply(x, height, width, shift)


def spans(length: int, padded: int, shift: int) -> tuple[tuple[slice, slice], ...]:
    """The two parts of a side, and where in the padded and shifted side they lie; one may be empty."""
    wrapped = min(shift, length)
    return ((slice(0, wrapped), slice(padded - shift, padded - shift + wrapped)),
            (slice(wrapped, length), slice(0, length - wrapped)))


def parts(x: Tensor, shifted: Tensor, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four rectangles of a map and of its padded and shifted form that hold the same pixels."""
    rows, columns = (spans(x.shape[dim], shifted.shape[dim], shift) for dim in (1, 2))
    for (row, shifted_row), (column, shifted_column) in product(rows, columns):
        yield x[:, row, column], shifted[:, shifted_row, shifted_column]


# One copy instead of one for the padding and two for each roll, in either direction.

class PadAndShift(torch.autograd.Function):
    """`pad_and_shift`"""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, padding: Tensor, padded_height: int,
                padded_width: int, shift: int) -> Tensor:
        ctx.shape, ctx.shift = x.shape, shift
        shape = (len(x), padded_height, padded_width, len(padding))
        padded = x.shape[1:3] != shape[1:3]
        shifted = padding.expand(shape).contiguous() if padded else x.new_empty(shape)
        for part, target in parts(x, shifted, shift):
            target.copy_(part)
        return shifted

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, padding = gradient.new_empty(ctx.shape), None
        for part, source in parts(x, gradient, ctx.shift):
            part.copy_(source)
        if ctx.needs_input_grad[1]:
            padding = gradient.new_zeros(gradient.shape[-1])
            if x.shape != gradient.shape:
                outside = gradient.clone()
                for _, own in parts(x, outside, ctx.shift):
                    own.zero_()
                padding = outside.sum(dim=(0, 1, 2))
        return x, padding, None, None, None


class UnshiftAndCrop(torch.autograd.Function):
    """`unshift_and_crop`"""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, shifted: Tensor, height: int, width: int,
                shift: int) -> Tensor:
        ctx.shape, ctx.shift = shifted.shape, shift
        x = shifted.new_empty(len(shifted), height, width, shifted.shape[-1])
        for part, source in parts(x, shifted, shift):
            part.copy_(source)
        return x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shifted = gradient.new_zeros(ctx.shape)
        for part, target in parts(gradient, shifted, ctx.shift):
            target.copy_(part)
        return shifted, None, None, None


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What keeps shifted windows from mixing opposite edges: (n, w², w²), 0 or −100.

    `height` and `width` are those of the padded map. Each side has three bands: all but the last window,
    the last window less the shift, the shift; tokens of different bands do not attend to each other.
    """
    def band(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - window // 2).int()

    region = 3 * band(height)[:, None] + band(width)[None, :]
    region = split_windows(region[None, :, :, None], window)[0, :, :, 0]
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED).to(dtype)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (w², w²) int64 in 0 … (2w − 1)² − 1."""
    row, column = torch.arange(window * window).div(window, rounding_mode="floor"), \
        torch.arange(window * window) % window
    row_offset = row[:, None] - row[None, :] + window - 1
    column_offset = column[:, None] - column[None, :] + window - 1
    return row_offset * (2 * window - 1) + column_offset
