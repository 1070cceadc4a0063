"""Swin's window attention on CPUs: no projection of padding, one copy for pad and shift, a cached bias in evaluation.

Shapes: as in lib/swin.py.
"""
from torch import Tensor

from lib.accelerate.attention import attention_weights
from lib.accelerate.derived import DerivedTensor
from lib.accelerate.windows import pad_and_shift, unshift_and_crop
from lib.swin import WindowAttention


class FastWindowAttention(WindowAttention):
    """Gives the same numbers: the query, key and value of a padding token are the bias of the projection."""

    def begin(self) -> None:
        """Called once, when a module takes this class."""
        self.derived_bias = DerivedTensor()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) of 0 and −100, used where the windows are shifted -> (B, H, W, C)"""
        batch, height, width, channels = x.shape
        window, heads, area = self.window, self.heads, self.window ** 2
        rows, columns = -(-height // window), -(-width // window)
        padded_height, padded_width = rows * window, columns * window

        qkv = pad_and_shift(self.qkv(x), self.qkv.bias, padded_height, padded_width, self.shift)
        # Shifted windows have different masks. They become heads, so that all samples share the masks: (B, n·h, w², d).
        # Other windows become samples, which share the bias: (B·n, h, w², d).
        qkv = qkv.view(batch, rows, window, columns, window, 3, heads, channels // heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)                                  # (3, B, rows, columns, h, w, w, d)
        groups = (batch, -1) if self.shift else (-1, heads)
        query, key, value = qkv.reshape(3, *groups, area, channels // heads)
        bias = self.derived_bias.get(self.relative_position_bias_table, (padded_height, padded_width, qkv.dtype),
                                     lambda: self.bias(mask).to(qkv.dtype))
        x = attention_weights(query, key, bias, query.shape[-1] ** -0.5).to(value.dtype) @ value

        x = x.view(batch, rows, columns, heads, window, window, channels // heads)
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, padded_height, padded_width, channels)
        return self.proj(unshift_and_crop(x, height, width, self.shift))

    def bias(self, mask: Tensor) -> Tensor:
        """Position bias and mask, to be added to the scores: (1, h, w², w²), or (1, n·h, w², w²) where shifted."""
        bias = self.position_bias()[None]
        if self.shift:
            bias = (bias + mask[:, None]).flatten(0, 1)[None]
        return bias.contiguous()
