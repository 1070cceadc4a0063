"""A network made ready for inference alone: BatchNorm folded into convolutions (`--fuse`), weights kept in `--amp`'s
precision."""
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from lib.accelerate.onednn import has_bfloat16, pack_products
from lib.accelerate.winograd import Conv3x3
from lib.decoder import Level
from lib.rotated_conv import AdaptiveRotatedConv
from lib.training.update import AMP_DTYPES


def fuse(model: nn.Module) -> nn.Module:
    """Folds, in place, each BatchNorm that follows a convolution directly; `model` must be in evaluation mode.

    Its weights are no longer those of a checkpoint: load first. Raises `ValueError` in training mode.
    """
    if model.training:
        raise ValueError("a BatchNorm that still learns cannot be folded: call model.eval() first")
    for module in list(model.modules()):
        if isinstance(module, Level):
            module.conv1, module.bn1 = fuse_conv_bn_eval(module.conv1, module.bn1), nn.Identity()
            module.conv2, module.bn2 = fuse_second(module.conv2, module.bn2), nn.Identity()
        elif isinstance(module, nn.Sequential):
            for i, (first, second) in enumerate(zip(module, list(module)[1:], strict=False)):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return model


def keep_weights_in(model: nn.Module, amp: str) -> nn.Module:
    """Stores, in place, what `--amp` would otherwise convert in each forward pass: linear and convolution weights."""
    dtype = AMP_DTYPES[amp]
    if dtype == torch.bfloat16 and next(model.parameters()).device.type == "cpu" and has_bfloat16():
        pack_products(model)
    if dtype:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Conv3x3):   # keeps its own
                module.to(dtype)
    return model


@torch.no_grad()
def fuse_second(conv: nn.Module, bn: nn.BatchNorm2d) -> nn.Module:
    """A level's second convolution, plain or rotated, with its BatchNorm: turning a kernel leaves channels apart."""
    if not isinstance(conv, AdaptiveRotatedConv):
        return fuse_conv_bn_eval(conv, bn)
    folded = [fuse_conv_bn_weights(kernel, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
              for kernel in conv.weight]
    conv.weight = nn.Parameter(torch.stack([kernel for kernel, _ in folded]))
    conv.bias = folded[0][1].detach()
    return conv
