"""Padding and shifting of a map in one copy in each direction, instead of one copy to pad and two to roll.

Shapes: B batch, H W a map, H' W' the same padded to whole windows, C channels. Maps are channels-last, (B, H, W, C).
"""
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor


def pad_and_shift(x: Tensor, padding: Tensor, padded_height: int, padded_width: int, shift: int) -> Tensor:
    """A map padded below and to the right, then rolled up and to the left: (B, H, W, C), (C,) -> (B, H', W', C)."""
    if not shift and (padded_height, padded_width) == x.shape[1:3]:
        return x
    return PadAndShift.apply(x, padding.to(x.dtype), padded_height, padded_width, shift)


def unshift_and_crop(x: Tensor, height: int, width: int, shift: int) -> Tensor:
    """The inverse of `pad_and_shift`: (B, H', W', C) -> (B, H, W, C)."""
    if not shift and (height, width) == x.shape[1:3]:
        return x
    return UnshiftAndCrop.apply(x, height, width, shift)


def spans(length: int, padded: int, shift: int) -> tuple[tuple[slice, slice], ...]:
    """The two slices into which a shift cuts a side, each with its slice of the padded side; one may be empty."""
    wrapped = min(shift, length)
    return ((slice(0, wrapped), slice(padded - shift, padded - shift + wrapped)),
            (slice(wrapped, length), slice(0, length - wrapped)))


def parts(x: Tensor, shifted: Tensor, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four rectangles of a map and of its padded and shifted form that hold the same pixels."""
    rows, columns = (spans(x.shape[dim], shifted.shape[dim], shift) for dim in (1, 2))
    for (row, shifted_row), (column, shifted_column) in product(rows, columns):
        yield x[:, row, column], shifted[:, shifted_row, shifted_column]


class PadAndShift(torch.autograd.Function):
    """`pad_and_shift` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: Tensor, padded_height: int, padded_width: int, shift: int) -> Tensor:
        ctx.shape, ctx.shift = x.shape, shift
        shape = (len(x), padded_height, padded_width, len(padding))
        padded = x.shape[1:3] != shape[1:3]
        shifted = padding.expand(shape).contiguous() if padded else x.new_empty(shape)
        for part, target in parts(x, shifted, shift):
            target.copy_(part)
        return shifted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
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
    """`unshift_and_crop` with its gradient."""

    @staticmethod
    def forward(ctx: Any, shifted: Tensor, height: int, width: int, shift: int) -> Tensor:
        ctx.shape, ctx.shift = shifted.shape, shift
        x = shifted.new_empty(len(shifted), height, width, shifted.shape[-1])
        for part, source in parts(x, shifted, shift):
            part.copy_(source)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shifted = gradient.new_zeros(ctx.shape)
        for part, target in parts(gradient, shifted, ctx.shift):
            target.copy_(part)
        return shifted, None, None, None
