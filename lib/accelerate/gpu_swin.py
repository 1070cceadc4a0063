"""Swin on GPUs: each map is copied once into windows and once back, and drop path needs no pass of its own.

Shapes: as in lib/swin.py; R = n · w² tokens in the windows of a map, padding included.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.accelerate.precision import products_dtype
from lib.swin import PatchMerging, SwinBlock, WindowAttention
from lib.windows import join_windows, padded_size


class GpuWindowAttention(WindowAttention):
    """Gives the same numbers: a copy of a rounded map is the rounded copy of the map.

    Only the gradient of the position bias is rounded elsewhere: once after the sum over samples and windows, instead of
    in each window after the sum over samples.
    """

    def begin(self) -> None:
        """Called once, when a module takes this class."""
        self.size: tuple = ()
        self.places: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) of 0 and −100, used where the windows are shifted -> (B, H, W, C)"""
        if torch.compiler.is_compiling():   # the compiler joins the copies with other work
            return super().forward(x, mask)
        padded_height, padded_width = padded_size(x.shape[1], x.shape[2], self.window)
        places = self.token_places(x)
        windows = ToWindows.apply(x.to(products_dtype(x)).flatten(1, 2), places, padded_height * padded_width)
        windows = self.attend(windows.unflatten(1, (-1, self.window ** 2)), mask if self.shift else None)
        return FromWindows.apply(windows.flatten(1, 2), places).view(x.shape)

    def token_places(self, x: Tensor) -> Tensor:
        """The token of each pixel of a map (B, H, W, C), (H·W,); they are kept for the next map of this size."""
        height, width = x.shape[1:3]
        if self.places is None or self.size != (height, width, x.device):
            padded = padded_size(height, width, self.window)
            tokens = torch.arange(padded[0] * padded[1], device=x.device).view(1, -1, self.window ** 2, 1)
            places = join_windows(tokens, self.window, *padded).roll((self.shift, self.shift), (1, 2))
            self.size, self.places = (height, width, x.device), places[0, :height, :width].flatten()
        return self.places

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside each window: (B, n, w², C), mask (n, w², w²) or None -> (B, n, w², C)"""
        bias = self.position_bias()[None].to(products_dtype(x))                         # (1, h, w², w²)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        parts = [part.transpose(2, 3) for part in qkv.unbind(3)]                        # each (B, n, h, w², d)
        joined = 0                                                                      # windows count as samples
        if mask is not None:
            joined = 1                                                                  # windows count as heads
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)[None]            # (1, n·h, w², w²)
        query, key, value = (part.flatten(joined, joined + 1) for part in parts)
        x = F.scaled_dot_product_attention(query, key, value, bias)
        x = x.unflatten(joined, parts[0].shape[joined:joined + 2])                      # (B, n, h, w², d)
        return self.proj(x.transpose(2, 3).flatten(3).contiguous())


class ToWindows(torch.autograd.Function):
    """The tokens of a map's windows: (B, H·W, C), the token of each pixel (H·W,), R -> (B, R, C). Padding is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, tokens: int) -> Tensor:
        ctx.places = places
        return put(x, places, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.index_select(1, ctx.places), None, None


class FromWindows(torch.autograd.Function):
    """The inverse of `ToWindows`: (B, R, C), (H·W,) -> (B, H·W, C)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.tokens = places, tokens.shape[1]
        return tokens.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return put(gradient, ctx.places, ctx.tokens), None


def put(x: Tensor, places: Tensor, tokens: int) -> Tensor:
    """Each pixel at its place among so many tokens, the others 0: (B, H·W, C), (H·W,) -> (B, R, C)."""
    shape = len(x), tokens, x.shape[2]
    result = x.new_empty(shape) if tokens == len(places) else x.new_zeros(shape)
    return result.index_copy_(1, places, x)


class GpuSwinBlock(SwinBlock):
    """Gives the same numbers: a branch is multiplied by its factors while it is added.

    The factors of both branches are drawn at once, so a generator gives others than to the plain block.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) -> (B, H, W, C)"""
        kept = 1 - self.drop_path.p
        if not self.training or kept == 1 or torch.compiler.is_compiling():
            return super().forward(x, mask)
        factors = x.new_empty(2, len(x), 1, 1, 1, dtype=products_dtype(x)).bernoulli_(kept)
        if kept > 0:
            factors.div_(kept)
        x = AddScaled.apply(x, self.attn(self.norm1(x), mask), factors[0])
        return AddScaled.apply(x, self.mlp(self.norm2(x)), factors[1])


class AddScaled(torch.autograd.Function):
    """x + factors · branch: (B, H, W, C), (B, H, W, C), factors (B, 1, 1, 1) -> (B, H, W, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        ctx.dtype = branch.dtype
        return torch.addcmul(x, branch, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factors, = ctx.saved_tensors
        return gradient, (gradient * factors).to(ctx.dtype), None


class GpuPatchMerging(PatchMerging):
    """Gives the same numbers: one copy each way brings the four corners together, as a permutation of axes."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, 2C)"""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))                                # (B, H/2, 2, W/2, 2, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))
