"""The precision that `--amp` names."""
from contextlib import nullcontext

import torch

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast | nullcontext:
    """The context in which the network computes in the precision that `--amp` names."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
