"""Linear layers and 1 × 1 convolutions with weights stored in oneDNN's layout, for bfloat16 inference on CPUs.

PyTorch rearranges the weight of an ordinary layer in each forward pass and first fills the output with its bias,
which costs a twentieth of a base network's time. The operators are those that `torch.compile` calls; they have no
gradient and are not public, so `has_bfloat16` checks that they exist.
"""
from functools import cache
from typing import TypeGuard

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.Tanh: "tanh"}   # oneDNN's names


@cache
def has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this CPU and this PyTorch has the operators."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """`nn.Linear` followed by an activation, "none" or one of `ACTIVATIONS`: (…, I) -> (…, O) in bfloat16."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16())   # (O, I), opaque
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self.activation = activation
        self.variant = "none" if activation == "gelu" else ""   # selects the exact GELU

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.weight, self.bias, self.activation, [],
                                                  self.variant)


class PackedPointwise(PackedLinear):
    """A 1 × 1 convolution as a linear layer over pixels: (B, I, H, W) -> (B, O, H, W), channels last in memory."""

    def __init__(self, conv: nn.Conv2d):
        linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None, device="meta")
        linear.weight = nn.Parameter(conv.weight.detach().flatten(1))
        if conv.bias is not None:
            linear.bias = nn.Parameter(conv.bias.detach())
        super().__init__(linear)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `module` is a 1 × 1 convolution of several channels (for one, products are no faster)."""
    return (type(module) is nn.Conv2d and module.kernel_size == module.stride == (1, 1) and module.groups == 1
            and module.in_channels > 1)


def pack_products(model: nn.Module) -> None:
    """Replaces 1 × 1 convolutions and linear layers in place; a linear layer absorbs the activation after it."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for i, (name, child) in enumerate(children):
            if is_pointwise(child):
                setattr(parent, name, PackedPointwise(child))
            elif type(child) is nn.Linear:
                following, after = children[i + 1] if i + 1 < len(children) else ("", None)
                fits = isinstance(parent, nn.Sequential) and type(after) in ACTIVATIONS
                setattr(parent, name, PackedLinear(child, ACTIVATIONS[type(after)] if fits else "none"))
                if fits:
                    setattr(parent, following, nn.Identity())
