"""BatchNorm over the batches of all processes, with one exchange in each direction.

PyTorch's SyncBatchNorm gathers the statistics of every process and then drops those of empty batches by a boolean
index, for which the host waits for the device in each layer, and which torch.compile cannot trace. Here the processes
add up sums, so that nothing is read and a compiled network stays one graph.

Shapes: x (B, C, …), C channels, N numbers of a channel over all processes.
"""
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def share_batch_norms(model: nn.Module) -> nn.Module:
    """Makes each BatchNorm of `model` normalise over all processes, in place; returns the model.

    Parameters, buffers and entries of the state dict stay the same.
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm
    return model


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose mean and variance in training are those of all processes' batches together: (B, C, …) -> same.

    Every process must call it, and in the same order. In evaluation mode it is PyTorch's BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        around = self.running_mean if self.running_mean is not None else input.new_zeros(input.shape[1])
        weight = self.weight if self.weight is not None else torch.ones_like(around)
        bias = self.bias if self.bias is not None else torch.zeros_like(around)
        y, mean, variance, count = Normalize.apply(input, weight, bias, around, self.eps)
        self.remember(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics towards a batch's mean and unbiased variance, both (C,)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.add_((mean - self.running_mean) * factor)
        self.running_var.add_((variance - self.running_var) * factor)


class Normalize(torch.autograd.Function):
    """x, weight (C,), bias (C,), around (C,), ε -> y as x, and without gradients mean (C,), variance (C,), N (1,).

    Squares are summed `around` a mean that all processes share, such as the running one: the variance is a difference
    of such sums, and around 0 it would lose its digits where the mean is much larger than the deviation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, around: Tensor,
                eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(around.dtype)
        own_variance, own_mean = torch.var_mean(wide, dim=[0, *range(2, x.dim())], correction=0)
        own_mean = own_mean - around
        sums = torch.cat([own_mean, own_variance + own_mean.square(), own_mean.new_ones(1)])
        sums = sums * (x.numel() // x.shape[1])
        dist.all_reduce(sums)
        mean, squares = (sums[:-1] / sums[-1]).chunk(2)
        variance, mean, count = (squares - mean.square()).clamp_min(0), mean + around, sums[-1:].clone()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        y = torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # With given statistics, this gives Σ gradient · normalised x and Σ gradient over this process's batch.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True])
        sums = torch.cat([of_weight, of_bias])
        dist.all_reduce(sums)
        sum_of_product, sum_of_gradient = (sums / count).chunk(2)
        # weight / deviation · (gradient − mean of gradient − normalised x · mean of their product), linear in x
        deviation = torch.rsqrt(variance + ctx.eps)
        factor = weight * deviation
        slope = factor * deviation * sum_of_product
        constant = slope * mean - factor * sum_of_gradient
        factor, slope, constant = (value.view(-1, *[1] * (x.dim() - 2)) for value in (factor, slope, constant))
        of_x = torch.addcmul(torch.addcmul(constant, x, slope, value=-1), gradient, factor)
        return of_x.to(x.dtype), of_weight, of_bias, None, None
