"""3 × 3 convolutions with a quarter of the multiplications, for CPUs: Winograd's minimal filtering F(4 × 4, 3 × 3).

Each 4 × 4 square of the result depends on the 6 × 6 square of the input around it. The input's square and the kernel
are transformed to the values of polynomials at six points, where a convolution is a pointwise product (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", CVPR 2016). The decoder's convolutions are half of a network's
arithmetic. On GPUs cuDNN chooses among such algorithms itself.

Shapes: B batch, H W the map, I O channels in and out, T tiles of a map, P = 36 pairs of points.
"""
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.accelerate.derived import DerivedTensor
from lib.accelerate.precision import compute_dtype

OUT, IN = 4, 6                       # side of a tile of the result, and of the input that it depends on
# The six points are these and infinity. Their largest rounding error is a quarter of that of the usual 0, ±1, ±2.
POINTS = (0.0, sqrt(1 / 2), -sqrt(1 / 2), sqrt(2), -sqrt(2))


@cache
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of flattened squares: the input's (36, 36), the kernel's (36, 9), the result's inverse (16, 36)."""
    points = np.array(POINTS)
    back, kernel, data = np.zeros((OUT, IN)), np.zeros((IN, 3)), np.zeros((IN, IN))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        back[:, i] = point ** np.arange(OUT)
        kernel[i] = point ** np.arange(3) / np.prod(point - others)
        data[i, :-1] = np.poly(others)[::-1]
    back[-1, -1] = kernel[-1, -1] = 1.0
    data[-1] = np.poly(points)[::-1]
    return np.kron(data, data), np.kron(kernel, kernel), np.kron(back, back)


def transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`matrices` as tensors, made at each call: tensors cached in inference mode could not be used in training."""
    data, kernel, back = (torch.from_numpy(matrix).to(dtype) for matrix in matrices())
    return data, kernel, back


def tiles(height: int, width: int) -> int:
    """The number T of tiles that cover a map."""
    return -(-height // OUT) * -(-width // OUT)


def pieces(squares: Tensor, canvas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Overlapping tiles (6, 6, B, rows, columns, C) and the pixels of the map that they cover, as four pairs of views.

    The map is (B, rows + 1, 4, columns + 1, 4, C): a tile consists of a 4 × 4 square and the first two rows and columns
    of the squares below and to the right.
    """
    rows, columns = squares.shape[3:5]
    for down, right in product((0, 1), repeat=2):
        tile = squares[OUT * down:OUT * (down + 1), OUT * right:OUT * (right + 1)]
        pixels = canvas[:, down:down + rows, :tile.shape[0], right:right + columns, :tile.shape[1]]
        yield tile, pixels.permute(2, 4, 0, 1, 3, 5)


class OverlappingTiles(torch.autograd.Function):
    """Maps (B, I_i, H, W), joined along the channels -> tiles of 6 × 6 in steps of 4: (6, 6, B, rows, columns, Σ I_i).

    The maps are padded by 1, and below and to the right up to whole tiles.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *maps: Tensor) -> Tensor:
        batch, _, height, width = maps[0].shape
        rows, columns = -(-height // OUT), -(-width // OUT)
        ctx.size, ctx.channels = (height, width), [own.shape[1] for own in maps]
        ctx.canvas_shape = batch, OUT * (rows + 1), OUT * (columns + 1), sum(ctx.channels)
        canvas = maps[0].new_empty(ctx.canvas_shape, dtype=dtype)
        for border in (canvas[:, 0], canvas[:, height + 1:], canvas[:, :, 0], canvas[:, :, width + 1:]):
            border.zero_()
        for part, own in zip(inside(canvas, ctx.size, ctx.channels), maps, strict=True):
            part.copy_(own)
        squares = canvas.new_empty(IN, IN, batch, rows, columns, ctx.canvas_shape[-1])
        for tile, pixels in pieces(squares, canvas.unflatten(2, (-1, OUT)).unflatten(1, (-1, OUT))):
            tile.copy_(pixels)
        return squares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        canvas = gradient.new_zeros(ctx.canvas_shape)
        for tile, pixels in pieces(gradient, canvas.unflatten(2, (-1, OUT)).unflatten(1, (-1, OUT))):
            pixels.add_(tile)
        return None, *inside(canvas, ctx.size, ctx.channels)


def inside(canvas: Tensor, size: tuple[int, int], channels: list[int]) -> list[Tensor]:
    """The maps (B, I_i, H, W) within a padded map (B, …, …, Σ I_i), as views."""
    height, width = size
    own = canvas[:, 1:height + 1, 1:width + 1].permute(0, 3, 1, 2)
    return list(own.split(channels, dim=1))


def convolve(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """A 3 × 3 convolution, padding 1, of maps joined along their channels.

    Maps (B, I_i, H, W) and a transformed weight (36, 1 or B, Σ I_i, O) -> (B, O, H, W). One weight serves the whole
    batch, or each sample has its own. The result is stored channels last.
    """
    batch, _, height, width = maps[0].shape
    data, _, back = transforms(weight.dtype)
    squares = OverlappingTiles.apply(weight.dtype, *maps)                          # (6, 6, B, rows, columns, Σ I_i)
    rows, columns = squares.shape[3:5]
    values = (data @ squares.flatten(2).flatten(0, 1)).view(IN ** 2 * weight.shape[1], -1, weight.shape[2])
    values = torch.bmm(values, weight.flatten(0, 1))                               # (36, T, O) or (36·B, T / B, O)
    y = (back @ values.view(IN ** 2, -1)).view(OUT, OUT, batch, rows, columns, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(batch, OUT * rows, OUT * columns, -1)
    return y[:, :height, :width].permute(0, 3, 1, 2)


class WinogradConv2d(nn.Conv2d):
    """A 3 × 3 convolution with padding 1 and stride 1, of one map or of several joined along their channels.

    (B, I_i, H, W), I channels in all -> (B, O, H, W)
    """

    def begin(self) -> None:
        """Called once, when a module takes this class."""
        self.derived_weight = DerivedTensor()

    def transformed(self, dtype: torch.dtype) -> Tensor:
        """The transformed weight, (36, 1, I, O)."""
        with torch.autocast("cpu", enabled=False):
            taps = self.weight.permute(1, 2, 3, 0).flatten(1, 2)                   # (I, 9, O)
            weight = transforms(taps.dtype)[1] @ taps
        return weight.transpose(0, 1).to(dtype).contiguous()[:, None]

    def forward(self, *maps: Tensor) -> Tensor:
        dtype = compute_dtype(self.weight)
        y = convolve(maps, self.derived_weight.get(self.weight, dtype, lambda: self.transformed(dtype)))
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
