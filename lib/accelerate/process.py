"""Settings of a process that computes on the CPU."""
import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # of malloc.h


def set_up_cpu(device: torch.device) -> None:
    """Two settings that make computing on the CPU faster; for other devices does nothing. Call it before computing.

    Freed memory is kept, up to the peak: glibc would hand large blocks back to the system, which must clear every page
    of them for the next pass. Float32 numbers below 10⁻³⁸ become 0: CPUs compute slowly with them, and the shifted
    windows' mask makes many, e⁻¹⁰⁰.
    """
    if device.type != "cpu":
        return
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)   # glibc's
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2 ** 31 - 1)
        mallopt(M_TRIM_THRESHOLD, -1)
