"""Linear layers whose weights lie in memory as oneDNN multiplies by them: inference in bfloat16 on CPUs.

PyTorch rearranges the weight of an ordinary layer in each pass, and writes its bias out beforehand: a twentieth of
a base network's time. The operators are those that `torch.compile` calls; they have no gradient and are not public,
which is why `can_pack` asks for them first.
"""
import torch
from torch import Tensor, nn

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.Tanh: "tanh"}   # oneDNN's names


def can_pack() -> bool:
    """Whether this PyTorch has the operators, and this CPU bfloat16 products."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """`nn.Linear` and an activation after it, "none" or one of `ACTIVATIONS`: (…, I) -> (…, O) in bfloat16."""

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16())   # (O, I), opaque
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self.activation = activation
        self.variant = "none" if activation == "gelu" else ""   # of GELU: the exact one

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.weight, self.bias, self.activation, [],
                                                  self.variant)


def pack_linears(model: nn.Module) -> None:
    """Replaces, in place, each linear layer, and the activation that follows it in an `nn.Sequential`."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for i, (name, child) in enumerate(children):
            if type(child) is not nn.Linear:
                continue
            activation = "none"
            if isinstance(parent, nn.Sequential) and i + 1 < len(children):
                following, module = children[i + 1]
                activation = ACTIVATIONS.get(type(module), "none")
                if activation != "none":
                    setattr(parent, following, nn.Identity())
            setattr(parent, name, PackedLinear(child, activation))
