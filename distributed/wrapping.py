"""A network that several processes train together."""
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distributed.batch_norm import share_batch_norms
from utils import log, world_size


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The module that a training step calls: with several processes, it synchronises gradients and, on GPUs, BatchNorm.

    The buffers of the first process are copied to the others once, here.
    """
    if world_size() == 1:
        return model
    # The router's depthwise weights have an axis of length 1, whose stride has no meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    on_gpu = device.type == "cuda"
    if on_gpu:
        share_batch_norms(model)
    else:
        log("BatchNorm is not synchronised: each CPU process normalises its own batch; GPUs normalise theirs together")
    devices = [device.index] if on_gpu else None
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False   # in later steps; the argument of this name is deprecated
    return wrapped


def share_buffers(model: nn.Module) -> None:
    """Copies the buffers of the first process's model to all others."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
