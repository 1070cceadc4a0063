"""The device of each process."""
import os

import torch

from utils import UserError


def local_rank(flag: int) -> int:
    """This process's number on its machine, from 0: LOCAL_RANK, or the flag `--local_rank` of older launchers."""
    return int(os.environ.get("LOCAL_RANK", flag))


def choose_device(device: str | None, number: int) -> torch.device:
    """The device that `--device` names for process `number` of this machine; without it a GPU if there is one.

    With several processes each gets the GPU of its own number. Raises `UserError` for a GPU that does not exist.
    """
    if device is None:
        device = f"cuda:{number}" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" or (device.startswith("cuda") and int(os.environ.get("WORLD_SIZE", 1)) > 1):
        device = f"cuda:{number}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} usable GPUs; leave the "
                            "flag out to run on what there is, or start fewer processes")
        torch.cuda.set_device(chosen)
    return chosen
