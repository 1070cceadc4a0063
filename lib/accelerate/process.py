"""Process-wide settings of the CPU or GPU. Call `set_up` before computing."""
import ctypes
from argparse import Namespace

import torch

from lib.accelerate.precision import usable_amp
from utils import log

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # of malloc.h


def set_up(device: torch.device, args: Namespace) -> None:
    """Applies the flags to this process, and replaces `args.amp` and `args.pin_mem` by their values for `device`."""
    args.amp = usable_amp(args.amp, device)
    if args.pin_mem is None:
        args.pin_mem = device.type == "cuda"
    if device.type == "cpu":
        set_up_cpu()
    elif device.type == "cuda":
        set_up_cuda(args.tf32, args.cudnn_benchmark)
        log("float32 products and convolutions in TF32, as in the original's PyTorch; --no-tf32 computes them in full"
            if args.tf32 else "float32 products and convolutions in full precision (--no-tf32)")
    elif device.type == "mps":
        log("--device mps: computes in float32 on Apple's GPU. Speed and accuracy have not been measured there")


def set_up_cpu() -> None:
    """Sets two options that make computing on the CPU faster.

    The process keeps freed memory, up to its peak: glibc would return large blocks to the system, which must clear all
    their pages for the next pass. Float32 numbers below 10⁻³⁸ become 0: CPUs compute slowly with such denormals, and
    the mask of shifted windows produces many of them (e⁻¹⁰⁰).
    """
    torch.set_flush_denormal(True)
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)   # glibc's
    except TypeError:   # Windows has no library of the process itself
        mallopt = None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2 ** 31 - 1)
        mallopt(M_TRIM_THRESHOLD, -1)


def set_up_cuda(tf32: bool = True, cudnn_benchmark: bool = True) -> None:
    """Sets the precision of float32 on GPUs, and whether cuDNN tries its algorithms on the first batch.

    TF32 rounds the factors of products and convolutions to 10 bits after the point, as the PyTorch version of the
    original programs did by default.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark
