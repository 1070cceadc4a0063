"""The device of each process."""
import os
import socket

import torch
import torch.distributed as dist

from distributed.driver import refuse_unusable_driver
from utils import UserError


def local_rank(flag: int) -> int:
    """This process's number on its machine, from 0: LOCAL_RANK, or the flag `--local_rank` of older launchers.

    Those give −1 to a process that is alone.
    """
    return max(0, int(os.environ.get("LOCAL_RANK", flag)))


def choose_device(device: str | None, number: int) -> torch.device:
    """The device that `--device` names for process `number` of this machine; without it a GPU if there is one.

    With several processes each gets the GPU of its own number, or the only one that it sees, since some launchers show
    each process a GPU of its own. Raises `UserError` for a GPU that does not exist, and without `--device` for a GPU
    that this PyTorch cannot use.
    """
    if torch.cuda.device_count() == 1:
        number = 0
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


def refuse_shared_gpu(device: torch.device, store: dist.Store) -> None:
    """Raises `UserError` if another process that uses the store has the same GPU, with which NCCL cannot work."""
    gpu = f"{socket.gethostname()}/{torch.cuda.get_device_properties(device).uuid}"
    if store.add(f"gpu/{gpu}", 1) > 1:
        raise UserError("another process has this process's GPU already: start as many processes as this machine has "
                        "GPUs, or show each process one of its own by CUDA_VISIBLE_DEVICES")
