"""The table of faster classes, and the function that applies it to a network."""
from collections.abc import Callable

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfAttention

from bert import TextEncoder
from lib.accelerate.arc import FastAdaptiveRotatedConv
from lib.accelerate.cim import FastCrossScaleAttention
from lib.accelerate.decoder import FastLevel
from lib.accelerate.drop_path import FastSwinBlock
from lib.accelerate.gpu_arc import GpuAdaptiveRotatedConv
from lib.accelerate.gpu_bert import GpuSelfAttention, GpuTextEncoder
from lib.accelerate.gpu_pwam import GpuPixelWordAttention, GpuWordAttention
from lib.accelerate.gpu_resize import GpuLevel, GpuScaleFusion
from lib.accelerate.gpu_swin import GpuPatchMerging, GpuSwinBlock, GpuWindowAttention
from lib.accelerate.onednn import FastLinear
from lib.accelerate.pwam import FastPixelWordAttention, FastWordAttention
from lib.accelerate.weight_casts import CastConv2d, CastLayerNorm, CastLinear
from lib.accelerate.window_attention import FastWindowAttention
from lib.arc import AdaptiveRotatedConv
from lib.cim import CrossScaleAttention, ScaleFusion
from lib.decoder import Level
from lib.pwam import PixelWordAttention, WordAttention
from lib.swin import PatchMerging, SwinBlock, WindowAttention

# For each device type: class -> faster class with the same parameters.
FASTER: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "cpu": {nn.Linear: FastLinear, WindowAttention: FastWindowAttention, WordAttention: FastWordAttention,
            PixelWordAttention: FastPixelWordAttention, Level: FastLevel, AdaptiveRotatedConv: FastAdaptiveRotatedConv,
            CrossScaleAttention: FastCrossScaleAttention, SwinBlock: FastSwinBlock},
    "cuda": {nn.Linear: CastLinear, nn.Conv2d: CastConv2d, nn.LayerNorm: CastLayerNorm,
             WindowAttention: GpuWindowAttention, SwinBlock: GpuSwinBlock, PatchMerging: GpuPatchMerging,
             WordAttention: GpuWordAttention, PixelWordAttention: GpuPixelWordAttention,
             AdaptiveRotatedConv: GpuAdaptiveRotatedConv, Level: GpuLevel, ScaleFusion: GpuScaleFusion,
             TextEncoder: GpuTextEncoder, BertSelfAttention: GpuSelfAttention},
}


def accelerate(model: nn.Module, device: torch.device, channels_last: bool = False) -> nn.Module:
    """Replaces the classes of `model`'s modules, in place, by the faster ones for `device`; returns the model.

    Only modules whose exact type is in the table change; a subclass runs as it is written. Parameters and entries of
    the state dict stay the same, and results do up to rounding. `channels_last` stores the weights of convolutions
    channels last, on GPUs only. Call this function before the model is wrapped (DDP) or compiled.
    """
    if channels_last and device.type == "cuda":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
    faster = FASTER.get(device.type, {})
    for module in list(model.modules()):
        if type(module) in faster:
            module.__class__ = faster[type(module)]
            begin: Callable[[], None] | None = getattr(module, "begin", None)
            if begin:
                begin()
    return model
