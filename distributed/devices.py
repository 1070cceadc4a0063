"""The device of each process."""
import os

import torch

from distributed.driver import refuse_unusable_driver
from utils import UserError


def local_rank(flag: int) -> int:
    """This process's number on its machine, from 0: LOCAL_RANK, or the flag `--local_rank` of older launchers."""
    return int(os.environ.get("LOCAL_RANK", flag))


def choose_device(device: str | None, number: int) -> torch.device:
    """The device that `--device` names for process `number` of this machine; without it a GPU if there is one.

    With several processes each gets the GPU of its own number. Raises `UserError` for a GPU that does not exist, and
    without `--device` for a GPU that this PyTorch cannot use.
    """
    if device is None:
        refuse_unusable_driver()
        device = f"cuda:{number}" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" or (device.startswith("cuda") and int(os.environ.get("WORLD_SIZE", 1)) > 1):
        device = f"cuda:{number}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} usable GPUs; leave the "
                            "flag out to run on what there is, or start fewer processes")
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this PyTorch finds no GPU of Apple's that it can use; leave the flag out")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("--device mps: several processes cannot share Apple's GPU; start one, or use the CPU")
    return chosen
