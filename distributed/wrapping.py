"""A network that several processes train together."""
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import log, world_size


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The module that a training step calls: with several processes, it synchronises gradients and BatchNorm."""
    if world_size() == 1:
        return model
    # The router's depthwise weights have an axis of length 1, whose stride has no meaning.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index], gradient_as_bucket_view=True,
                                       broadcast_buffers=False)
    log("BatchNorm is not synchronised: SyncBatchNorm needs GPUs; each CPU process normalises its own batch")
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


def share_buffers(model: nn.Module) -> None:
    """Copies the buffers of the first process's model to all others."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
