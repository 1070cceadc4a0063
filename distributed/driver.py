"""An NVIDIA driver that is too old for this PyTorch, which would otherwise compute on the CPU without a word."""
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from utils import UserError

DRIVER_FILE = Path("/proc/driver/nvidia/version")
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}   # Linux's, by CUDA's major version; a minor version needs no newer one
# The newest releases whose builds on the package index are for CUDA 12. docs/troubleshooting.md has the other builds.
FOR_CUDA_12 = 'pip install "torch<2.11" "torchvision<0.26"'


def driver_version() -> str:
    """The driver's version, for example 535.104.05, by its file or nvidia-smi; '' if neither says."""
    said = ""
    with suppress(OSError, subprocess.SubprocessError):
        said = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    if not said and (program := shutil.which("nvidia-smi")):
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([program, "--query-gpu=driver_version", "--format=csv,noheader"], timeout=30,
                                  capture_output=True, text=True, check=True).stdout
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", said)
    return found[0] if found else ""


def refuse_unusable_driver() -> None:
    """Raises `UserError` if there is an NVIDIA driver and this PyTorch is built for CUDA, but cannot use a GPU.

    Nothing is said without a driver, to a PyTorch without CUDA, and where CUDA_VISIBLE_DEVICES hides all GPUs.
    """
    cuda = torch.version.cuda
    if not cuda or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or torch.cuda.is_available():
        return
    if not DRIVER_FILE.is_file() and not shutil.which("nvidia-smi"):
        return
    driver, needed = driver_version(), OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0)
    given = f"the NVIDIA driver {driver or 'of unknown version'}"
    build = f"this PyTorch {torch.__version__.split('+')[0]} is built for CUDA {cuda} (driver {needed} or newer)"
    if driver and int(driver.split(".")[0]) >= needed:
        remedy = "See whether nvidia-smi lists a GPU that this process may use"
    elif driver and int(driver.split(".")[0]) < OLDEST_DRIVER[12]:
        remedy = f"Update the driver to {OLDEST_DRIVER[12]} or newer, for which {FOR_CUDA_12} installs a fitting build"
    else:
        remedy = f"Give {FOR_CUDA_12} for drivers from {OLDEST_DRIVER[12]} on, or update the driver"
    raise UserError(f"no GPU can be used: {build}, and this machine has {given}. {remedy}. "
                    "--device cpu computes without a GPU; docs/troubleshooting.md lists drivers and builds")
