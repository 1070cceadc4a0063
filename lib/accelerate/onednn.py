"""Linear layers by oneDNN, which multiplies large matrices faster than the BLAS that PyTorch's own layers call.

For inference, the weights of linear layers and 1 × 1 convolutions are stored in oneDNN's layout. PyTorch rearranges
the weight of an ordinary bfloat16 layer in each forward pass and first fills the output with its bias, which costs a
twentieth of a base network's time. The operators are those that `torch.compile` calls; they have no gradient and are
not public, so `has_products` checks that they exist.

Shapes: I features in, O features out.
"""
import platform
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# oneDNN is no faster for products of fewer multiplications, or over fewer features.
LARGE, WIDE = 2 ** 24, 96
ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.Tanh: "tanh"}   # oneDNN's names


@cache
def has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of `dtype` on this x86 CPU, and this PyTorch has the operators for it."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (dtype in (torch.float32, torch.bfloat16) and platform.machine() in ("x86_64", "AMD64")
            and torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
            and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def has_bfloat16() -> bool:
    """Whether oneDNN multiplies matrices of bfloat16 on this CPU."""
    return has_products(torch.bfloat16)


class Product(torch.autograd.Function):
    """x (R, I), weight (O, I), bias (O,) or None, in float32 -> x @ weight.T + bias (R, O).

    With more dimensions oneDNN returns a view, which nothing may change in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "") if of_x else None,
                gradient.t() @ x if of_weight else None,   # here the BLAS is faster
                gradient.sum(0) if of_bias else None)


class FastLinear(nn.Linear):
    """Gives the same numbers up to rounding: (…, I) -> (…, O). Only products in float32 gain by it."""

    def forward(self, x: Tensor) -> Tensor:
        single = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        large = x.numel() * self.out_features >= LARGE and self.in_features >= WIDE
        if single and large and has_products(torch.float32):
            return Product.apply(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])
        return super().forward(x)


class PackedLinear(nn.Module):
    """`nn.Linear` followed by an activation, "none" or one of `ACTIVATIONS`: (…, I) -> (…, O), all in `dtype`."""

    bias: Tensor | None   # (O,)

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, activation: str = "none"):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))   # (O, I), opaque
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)
        self.dtype, self.activation = dtype, activation
        self.variant = "none" if activation == "gelu" else ""   # selects the exact GELU

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, self.activation, [],
                                                  self.variant)


class PackedPointwise(PackedLinear):
    """A 1 × 1 convolution as a linear layer over pixels: (B, I, H, W) -> (B, O, H, W), channels last in memory."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype):
        linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None, device="meta")
        linear.weight = nn.Parameter(conv.weight.detach().flatten(1))
        if conv.bias is not None:
            linear.bias = nn.Parameter(conv.bias.detach())
        super().__init__(linear, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `module` is a 1 × 1 convolution of several channels (a product is no faster for one channel)."""
    return (type(module) is nn.Conv2d and module.kernel_size == module.stride == (1, 1) and module.groups == 1
            and module.in_channels > 1)


def pack_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces 1 × 1 convolutions and linear layers in place; a linear layer absorbs the activation after it.

    The replaced layers compute in `dtype`, for which `has_products` must hold.
    """
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for i, (name, child) in enumerate(children):
            if is_pointwise(child):
                setattr(parent, name, PackedPointwise(child, dtype))
            elif isinstance(child, nn.Linear) and type(child) in (nn.Linear, FastLinear):   # subclasses stay
                following, after = children[i + 1] if i + 1 < len(children) else ("", None)
                fits = isinstance(parent, nn.Sequential) and type(after) in ACTIVATIONS
                setattr(parent, name, PackedLinear(child, dtype, ACTIVATIONS[type(after)] if fits else "none"))
                if fits:
                    setattr(parent, following, nn.Identity())
