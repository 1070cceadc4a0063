"""Low precision on GPUs: the weights of many layers are rounded by one operator, as are their gradients widened.

Autocast rounds each weight and bias by an operator of its own in each forward pass and widens its gradient by another
one, a thousand in a step, each of which is a launch. The numbers are the same.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.autograd.function import once_differentiable

GROUP = 2 ** 24   # numbers that are rounded together, so that several GPUs exchange gradients before all are known


class CastLinear(nn.Linear):
    """A linear layer that computes with the rounded weight and bias that it is lent, if any: (…, I) -> (…, O)."""

    lent: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.lent is None:
            return super().forward(x)
        return nn.functional.linear(x, *self.lent)


class CastConv2d(nn.Conv2d):
    """A convolution that computes with the rounded weight and bias that it is lent: (B, I, H, W) -> (B, O, H', W')."""

    lent: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.lent is None:
            return super().forward(x)
        weight, *bias = self.lent
        return self._conv_forward(x, weight, bias[0] if bias else None)


Layer = CastLinear | CastConv2d


class WeightCasts:
    """Lends its layers rounded weights for a forward pass: `with casts.lent(): model(…)`, inside autocast.

    Layers that `accelerate` has not made `CastLinear` or `CastConv2d` stay with autocast, and so does a compiled
    network, whose compiler joins the casts with other work.
    """

    def __init__(self, model: nn.Module):
        compiled = any(isinstance(module, OptimizedModule) for module in model.modules())
        self.groups: list[list[Layer]] = []
        size = GROUP
        for module in () if compiled else model.modules():
            if isinstance(module, CastLinear | CastConv2d):
                if size >= GROUP:
                    self.groups.append([])
                    size = 0
                self.groups[-1].append(module)
                size += module.weight.numel()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """A context in which the layers have rounded weights, if autocast is on and gradients are wanted."""
        try:
            for group in self.groups:
                kind = group[0].weight.device.type
                if torch.is_autocast_enabled(kind) and torch.is_grad_enabled():
                    lend(group, torch.get_autocast_dtype(kind))
            yield
        finally:
            for group in self.groups:
                for layer in group:
                    layer.lent = None


def lend(layers: Sequence[Layer], dtype: torch.dtype) -> None:
    """Rounds the weights and biases of the layers; those that are frozen get no gradient."""
    for trained in (False, True):
        owners = [(layer, parameter) for layer in layers for parameter in (layer.weight, layer.bias)
                  if parameter is not None and parameter.requires_grad == trained]
        if not owners:
            continue
        parameters = [parameter for _, parameter in owners]
        rounded = RoundTogether.apply(dtype, *parameters) if trained else round_together(dtype, parameters)
        for (layer, _), tensor in zip(owners, rounded, strict=True):
            layer.lent = [*(layer.lent or []), tensor]


def round_together(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in another precision, by one operator."""
    rounded = [torch.empty_like(tensor, dtype=dtype, requires_grad=False) for tensor in tensors]
    with torch.no_grad():
        torch._foreach_copy_(rounded, list(tensors))
    return rounded


class RoundTogether(torch.autograd.Function):
    """`round_together` with its gradient, in the precision of each parameter."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = parameters[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(round_together(dtype, parameters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(round_together(ctx.dtype, [gradient for gradient in gradients if gradient is not None]))
        return None, *(None if gradient is None else next(wide) for gradient in gradients)
