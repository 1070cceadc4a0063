"""The table of faster classes, and the call that puts them in place."""
import torch
from torch import nn

from lib.accelerate.cross_scale import FastCrossScaleAttention
from lib.accelerate.decoder import FastLevel
from lib.accelerate.language_fusion import FastPixelWordAttention, FastWordAttention
from lib.accelerate.rotated_conv import FastAdaptiveRotatedConv
from lib.accelerate.window_attention import FastWindowAttention
from lib.cross_scale import CrossScaleAttention
from lib.decoder import Level
from lib.language_fusion import PixelWordAttention, WordAttention
from lib.rotated_conv import AdaptiveRotatedConv
from lib.swin import WindowAttention

# For each kind of device: class -> faster class of the same parameters. No measurement has filled one for GPUs yet.
FASTER: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "cpu": {WindowAttention: FastWindowAttention, WordAttention: FastWordAttention,
            PixelWordAttention: FastPixelWordAttention, Level: FastLevel, AdaptiveRotatedConv: FastAdaptiveRotatedConv,
            CrossScaleAttention: FastCrossScaleAttention},
}


def accelerate(model: nn.Module, device: torch.device, channels_last: bool = False) -> nn.Module:
    """Gives the modules of `model`, in place, the faster classes for `device`; returns the model.

    Only modules whose exact type is in the table change: a subclass runs as it is written. Parameters, entries of the
    state dict and results stay the same up to rounding. `channels_last` lays the convolutions' weights out so, on
    GPUs alone. Call it before the model is wrapped (DDP) or compiled.
    """
    if channels_last and device.type == "cuda":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
    faster = FASTER.get(device.type, {})
    for module in list(model.modules()):
        if type(module) in faster:
            module.__class__ = faster[type(module)]
            if hasattr(module, "begin"):
                module.begin()
    return model
