"""This process's place among the processes of a run, without importing torch, which takes seconds."""
import sys
from types import ModuleType


def rank() -> int:
    """The rank of this process in the run, 0 without distributed training."""
    return _process_group().get_rank() if _process_group() else 0


def world_size() -> int:
    """The number of processes of the run, 1 without distributed training."""
    return _process_group().get_world_size() if _process_group() else 1


def _process_group() -> ModuleType | None:
    """torch.distributed if a process group exists; this module does not import torch, which takes seconds."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
