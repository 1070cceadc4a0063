"""The machine and the packages that results and speed depend on."""
import platform
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.ranks import world_size

if TYPE_CHECKING:
    import torch


@cache
def processor() -> tuple[str, frozenset[str]]:
    """This machine's processor: its name, and Linux's feature flags (no flags on other systems)."""
    lines: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    name = lines.get("model name") or platform.processor() or platform.machine()
    return name, frozenset(lines.get("flags", lines.get("Features", "")).split())


INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16",
                "asimd": "NEON", "sve": "SVE", "bf16": "BF16"}   # by Linux's flags; those that speed depends on


def describe_cpu() -> str:
    """The processor's name and the instructions that speed depends on: 'AMD EPYC (AVX2, AVX-512)'."""
    name, flags = processor()
    known = [instructions for flag, instructions in INSTRUCTIONS.items() if flag in flags]
    return f"{name} ({', '.join(known)})" if known else name


def describe_run(device: "torch.device") -> dict[str, Any]:
    """The environment that results depend on: package versions, the device, the number of processes."""
    import torch
    packages = ("torch", "torchvision", "transformers", "tokenizers", "pycocotools", "numpy", "Pillow")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_cpu()
    return {"versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
            "device": f"{device.type}: {name}", "processes": world_size()}


def peak_memory_mib(device: "torch.device") -> int:
    """The peak memory in MiB, of the NVIDIA GPU or, on other devices, of this process; 0 where the system does not say.

    Windows does not.
    """
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated(device) >> 20
    try:
        import resource
    except ImportError:   # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)
