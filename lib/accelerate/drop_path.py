"""Swin blocks in training on CPUs: a residual branch is not computed for the samples for which drop path drops it.

Drop path multiplies a sample's branch by 0 with the block's rate, which rises to 0.3 (Huang et al., "Deep Networks with
Stochastic Depth", ECCV 2016). On a GPU the program would have to wait for the device to know which samples are kept.

Shapes: B batch, K samples kept; the others as in lib/swin.py.
"""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib.accelerate.precision import compute_dtype
from lib.swin import SwinBlock


class FastSwinBlock(SwinBlock):
    """Gives the same numbers and gradients, from the same random numbers, and computes only the branches kept."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C), mask (n, w², w²) -> (B, H, W, C)"""
        if not self.training or self.drop_path.p == 0:
            return super().forward(x, mask)
        x = self.add_branch(x, lambda kept: self.attn(self.norm1(kept), mask), self.norm1, self.attn)
        return self.add_branch(x, lambda kept: self.mlp(self.norm2(kept)), self.norm2, self.mlp)

    def add_branch(self, x: Tensor, branch: Callable[[Tensor], Tensor], *modules: nn.Module) -> Tensor:
        """x + drop_path(branch(x)): (B, H, W, C) -> same. `modules` are those that the branch computes with."""
        factors = self.drop_path(x.new_ones(len(x), 1, 1, 1, dtype=compute_dtype(x)))  # 0 or 1 / (1 − rate)
        kept = factors.flatten().nonzero().flatten()                                   # (K,)
        if len(kept) == len(x):
            return x + branch(x) * factors
        if len(kept) == 0:
            return WithoutBranch.apply(x, *(parameter for module in modules for parameter in module.parameters()))
        return x.index_add(0, kept, (branch(x.index_select(0, kept)) * factors[kept]).to(x.dtype))


class WithoutBranch(torch.autograd.Function):
    """x, and the parameters of a branch that is dropped for all samples -> x.

    The parameters get gradients of zeros, as from a branch multiplied by 0. Without a gradient an optimiser would not
    decay them, and DistributedDataParallel would wait for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *(torch.zeros_like(parameter) if needed else None
                           for parameter, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True))
