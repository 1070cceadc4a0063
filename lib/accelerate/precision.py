"""The precision that `--amp` names."""
from contextlib import nullcontext

import torch
from torch import Tensor

from lib.accelerate.onednn import has_bfloat16
from utils import log, processor

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"}   # Linux's names, on x86 and ARM


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; oneDNN answers where the CPU's flags are not known."""
    flags = processor()[1]
    return bool(flags & BFLOAT16_FLAGS) if flags else has_bfloat16()


def usable_amp(amp: str, device: torch.device) -> str:
    """The key of `AMP_DTYPES` that the value `amp` of `--amp` selects on this device.

    A CPU without bfloat16 instructions takes many times as long in bfloat16 as in float32: "bf16" then selects "off"
    and logs a line, while "bf16!" selects bfloat16 nevertheless. Apple's GPUs (mps) compute in float32 only.
    """
    if amp == "bf16" and device.type == "cpu" and not cpu_computes_bfloat16():
        log(f"--amp bf16: {processor()[0]} has no bfloat16 instructions, so this computes in float32, which is faster "
            "here; --amp bf16! uses bfloat16 all the same")
        return "off"
    if amp != "off" and device.type == "mps":
        log(f"--amp {amp}: this computes in float32, the one precision for --device mps")
        return "off"
    return amp.removesuffix("!")


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext:
    """The context in which the network computes in the precision `amp`, a key of `AMP_DTYPES`."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The precision in which a CPU multiplies `tensor`: autocast's, or the tensor's own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tensor.dtype


def products_dtype(x: Tensor) -> torch.dtype:
    """The precision in which the tensor's device multiplies it: autocast's, or the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
