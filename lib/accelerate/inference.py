"""Preparation of a network for inference: BatchNorm folded, weights in low precision and as oneDNN reads them."""
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from lib.accelerate.onednn import has_products, pack_products
from lib.accelerate.precision import AMP_DTYPES
from lib.accelerate.weight_casts import CastConv2d
from lib.accelerate.winograd import WinogradConv2d
from lib.arc import AdaptiveRotatedConv
from lib.decoder import Level


def prepare_for_inference(model: nn.Module, amp: str = "off", fold_batchnorm: bool = False) -> nn.Module:
    """Changes `model` in place, and irreversibly, into a faster network with the same outputs; returns it.

    `amp` names the precision of the forward pass (see args.py), in which the weights are then stored;
    `fold_batchnorm` folds each BatchNorm that directly follows a convolution and, on CPUs, packs float32 weights for
    oneDNN, too. Load a checkpoint before, since its entries no longer fit afterwards. Raises `ValueError` in training
    mode.
    """
    if model.training:
        raise ValueError("a BatchNorm that still learns cannot be folded: call model.eval() first")
    if fold_batchnorm:
        fold_batchnorms(model)
    store_weights(model, amp, fold_batchnorm)
    return model


def fold_batchnorms(model: nn.Module) -> None:
    """Folds, in place, each BatchNorm that directly follows a convolution, and those of the decoder's levels."""
    for module in list(model.modules()):
        if isinstance(module, Level):
            module.conv1 = fuse_conv_bn_eval(module.conv1, module.bn1)
            module.add_module("bn1", nn.Identity())
            if isinstance(module.conv2, AdaptiveRotatedConv):
                module.add_module("bn2", fold_into_rotated(module.conv2, module.bn2))
            elif isinstance(module.conv2, nn.Conv2d):
                module.conv2 = fuse_conv_bn_eval(module.conv2, module.bn2)
                module.add_module("bn2", nn.Identity())
        elif isinstance(module, nn.Sequential):
            for i, (first, second) in enumerate(zip(module, list(module)[1:], strict=False)):
                plain = type(first) in (nn.Conv2d, CastConv2d) and type(second) is nn.BatchNorm2d   # subclasses do more
                if plain and isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


class ChannelBias(nn.Module):
    """Adds a bias to each channel: (B, C, H, W) -> same."""

    bias: Tensor   # (C,)

    def __init__(self, bias: Tensor):
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.to(x.dtype)[:, None, None]


@torch.no_grad()
def fold_into_rotated(conv: AdaptiveRotatedConv, bn: nn.BatchNorm2d) -> ChannelBias:
    """Folds the scale of `bn` into the kernels, in place, and returns its shift.

    Rotation does not mix output channels, so a scale of an output channel may be applied before it.
    """
    mean, variance = bn.running_mean, bn.running_var
    assert mean is not None and variance is not None
    folded = [fuse_conv_bn_weights(kernel, None, mean, variance, bn.eps, bn.weight, bn.bias) for kernel in conv.weight]
    conv.weight = nn.Parameter(torch.stack([kernel for kernel, _ in folded]))
    return ChannelBias(folded[0][1].detach())


def store_weights(model: nn.Module, amp: str, pack_float32: bool) -> None:
    """Stores the weights of linear and convolution layers, in place, in the precision that `amp` selects."""
    weight, dtype = next(model.parameters()), AMP_DTYPES[amp]
    packed = dtype or (weight.dtype if pack_float32 else None)
    if packed and weight.device.type == "cpu" and has_products(packed):
        pack_products(model, packed)
    if dtype:
        for module in model.modules():
            # A `WinogradConv2d` caches its own transformed weight in that precision.
            if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, WinogradConv2d):
                module.to(dtype)
